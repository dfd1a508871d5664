"""The training process as its supervisor holds it: started, heard, asked, and ended with everything it left."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The training process needs none of them; what it does not have it cannot leak into a log or an artifact.
_SECRETS = (
    "TAFDIL_DATABASE_URL",
    "TAFDIL_REDIS_URL",
    "TAFDIL_ADMIN_KEY",
    "TAFDIL_HUB_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "PGPASSWORD",
    "PGPASSFILE",
)
_PING_EVERY_S = 0.2
_UNKILLABLE_S = 10.0
_SESSION_FIELD = 3  # of /proc/<pid>/stat, counted after the command's name


class TrainingProcess:
    """A training process in a session of its own. Reports come over a pipe; requests go to its standard input.

    Args:
        command: what to run; the attempt's directory, the reports' file descriptor and this process's id are appended.
        folder: the attempt's directory; what the process prints goes to `log.txt` there.
        environment: variables to set on top of this process's own.
        lock: a file descriptor that the process inherits and keeps open.

    Attributes:
        heard_at: when it was last heard of, by `time.monotonic`.
        killed_at: when it was killed first, if it was.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str], lock: int | None) -> None:
        self._reports, write_end = os.pipe()
        kept = {name: value for name, value in os.environ.items() if name not in _SECRETS}
        try:
            with (folder / "log.txt").open("ab") as output:
                self._process = subprocess.Popen(
                    [*command, str(folder), str(write_end), str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(write_end, *([lock] if lock is not None else [])),
                    start_new_session=True,
                    env={**kept, **environment},
                )
        except BaseException:
            os.close(self._reports)
            raise
        finally:
            os.close(write_end)
        assert self._process.stdin is not None
        self._input = self._process.stdin.fileno()
        # A process that does not read must not stop the one that watches it.
        os.set_blocking(self._input, False)
        self.pid = self._process.pid
        self.heard_at = time.monotonic()
        self.killed_at: float | None = None
        self._pinged_at = 0.0
        self._buffer = b""
        self._is_silent = False

    def resident_bytes(self) -> int | None:
        """Memory that the process holds, in bytes; None when it is gone, or where the kernel does not say."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError, ValueError):
            return None
        return pages * os.sysconf("SC_PAGE_SIZE")

    def hear(self, seconds: float) -> list[dict[str, Any]] | None:
        """Reports that arrive within `seconds`; None once there will be no more."""
        self._ping()
        if not self._is_silent:
            ready, _, _ = select.select([self._reports], [], [], seconds)
            if not ready:
                if self._process.poll() is None:
                    return []
                # It may have reported its end since; or it left the pipe to a descendant, and is over all the same.
                if not select.select([self._reports], [], [], 0)[0]:
                    return None
            data = os.read(self._reports, 2**16)
            self._is_silent = not data
            if data:
                self.heard_at = time.monotonic()
                *lines, self._buffer = (self._buffer + data).split(b"\n")
                return [json.loads(line) for line in lines]
        # The end of the reports comes before the end of the process by a moment.
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return []
        return None

    def ask_to_stop(self) -> None:
        """Asks it to save a checkpoint at its next step boundary and to leave."""
        self._say(b"stop\n")

    def interrupt(self) -> None:
        """Ends it without waiting for a step; it may close its files."""
        self._signal(signal.SIGINT)

    def abort(self) -> None:
        """Ends it and has it write to its log where it stood."""
        self._signal(signal.SIGABRT)

    def kill(self) -> None:
        """Ends every process of its group at once."""
        self.killed_at = self.killed_at or time.monotonic()
        self._signal(signal.SIGKILL)

    def end(self) -> tuple[int | None, list[int]]:
        """Ends whatever is left of it. Returns its exit code and the processes of its session that still live.

        The code is None when the kernel does not let it go, as may happen in a driver or on a file server that hangs.
        """
        self.kill()
        try:
            code = self._process.wait(_UNKILLABLE_S)
        except subprocess.TimeoutExpired:
            code = None
        left = session_processes(self.pid)
        for pid in left:
            _kill(pid)
        deadline = time.monotonic() + 5
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = session_processes(self.pid)
        os.close(self._reports)
        assert self._process.stdin is not None
        self._process.stdin.close()
        return code, left

    def _ping(self) -> None:
        now = time.monotonic()
        if now - self._pinged_at >= _PING_EVERY_S:
            self._pinged_at = now
            self._say(b"ping\n")

    def _say(self, line: bytes) -> None:
        try:
            os.write(self._input, line)
        except (BrokenPipeError, BlockingIOError):
            # It has ended, or does not listen; either is seen elsewhere.
            return

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return


def session_processes(session: int) -> list[int]:
    """Living processes of a session (Linux; elsewhere none are found)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[_SESSION_FIELD]) == session and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
