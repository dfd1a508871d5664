"""The training process as its supervisor holds it: started, heard, asked, and ended with everything it left."""

import json
import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from worker.warm_start import ColdReason, ColdStart, ForkedProcess, ForkServer

log = logging.getLogger(__name__)

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
# The empty line that a forked process waits for.
_GO = b"\n"
_UNKILLABLE_S = 10.0
# Of /proc/<pid>/stat, counted after the command's name.
_PARENT_FIELD, _SESSION_FIELD = 1, 3


class TrainingProcess:
    """A training process in a session of its own. Reports come over a pipe; requests go to its standard input.

    Args:
        command: what to run; the attempt's directory, the reports' file descriptor and this process's id are appended.
        folder: the attempt's directory; what the process prints goes to `log.txt` there.
        environment: variables to set on top of this process's own.
        lock: a file descriptor that the process inherits and keeps open.
        server: what forks the process, or why it starts by itself.
        give_up: whether the fork server is not waited for any longer.

    Attributes:
        cold_reason: why it was not forked; None when it was.
        heard_at: when it was last heard of, by `time.monotonic`.
        killed_at: when it was killed first, if it was.
        peak_memory_bytes: the most memory that it and its children were seen to hold.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environment: dict[str, str],
        lock: int | None,
        *,
        server: ForkServer | ColdReason = ColdReason.SWITCHED_OFF,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self.cold_reason: ColdReason | None = None
        whole = whole_environment(environment)
        locks = [lock] if lock is not None else []
        self._reports, write_end = os.pipe()
        given, self._input = os.pipe()
        # A process that does not read must not stop the one that watches it.
        os.set_blocking(self._input, False)
        try:
            with (folder / "log.txt").open("ab") as output:
                try:
                    if isinstance(server, ColdReason):
                        raise ColdStart(server)
                    descriptors = [given, output.fileno(), write_end, *locks]
                    self._process: subprocess.Popen[bytes] | ForkedProcess = server.fork(folder, whole, descriptors, give_up)
                    os.write(self._input, _GO)
                except ColdStart as error:
                    log.info("the run starts cold: %s", error)
                    self.cold_reason = error.reason
                    self._process = subprocess.Popen(
                        [*command, str(folder), str(write_end), str(os.getpid())],
                        stdin=given,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        pass_fds=(write_end, *locks),
                        start_new_session=True,
                        env=whole,
                    )
        except BaseException:
            os.close(self._reports)
            os.close(self._input)
            raise
        finally:
            os.close(given)
            os.close(write_end)
        self.pid = self._process.pid
        self.heard_at = time.monotonic()
        self.killed_at: float | None = None
        self._pinged_at = 0.0
        self._buffer = b""
        self._is_silent = False
        self.peak_memory_bytes = 0

    def resident_bytes(self) -> int | None:
        """Memory that the process holds, in bytes; None when it is gone, or where the kernel does not say."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError, ValueError):
            return None
        return pages * os.sysconf("SC_PAGE_SIZE")

    def look_at_memory(self) -> None:
        """Notes what the process and its children hold. Call it often: there is no number once they are gone."""
        with suppress(OSError):
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
            self.peak_memory_bytes = max(self.peak_memory_bytes, sum(map(_held_bytes, [str(self.pid), *children])))

    def hear(self, seconds: float) -> list[dict[str, Any]] | None:
        """Reports that arrive within `seconds`; None once there will be no more."""
        self._ping()
        if not self._is_silent:
            ready, _, _ = select.select([self._reports], [], [], seconds)
            if not ready:
                if not self._has_ended(0):
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
        return None if self._has_ended(seconds) else []

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
        if code is not None:
            _reap(self.pid)
        os.close(self._reports)
        os.close(self._input)
        return code, left

    def _has_ended(self, seconds: float) -> bool:
        """Whether it ends within a time. It is left to be waited for at its end, so that no other process gets its id."""
        if not hasattr(os, "pidfd_open"):
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                return False
            return True
        descriptor = os.pidfd_open(self.pid)
        try:
            return bool(select.select([descriptor], [], [], seconds)[0])
        finally:
            os.close(descriptor)

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
            # One that was forked a moment ago has no group of its own yet, and nothing below it.
            _kill(self.pid, number)


def session_processes(session: int) -> list[int]:
    """Living processes of a session (Linux; elsewhere none are found)."""
    return [pid for pid, state, _ in _members(session) if state not in "ZX"]


def _reap(session: int) -> None:
    """Waits for processes of a session that have ended, where this process got them as orphans."""
    for pid, state, parent in _members(session):
        if state == "Z" and parent == os.getpid():
            os.waitpid(pid, os.WNOHANG)


def _members(session: int) -> Iterator[tuple[int, str, int]]:
    """Id, state and parent of the processes of a session."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[_SESSION_FIELD]) == session:
            yield int(stat.parent.name), fields[0], int(fields[_PARENT_FIELD])


def whole_environment(own: Mapping[str, str]) -> dict[str, str]:
    """All variables of a training process: this process's without secrets, and its own on top."""
    return {**{name: value for name, value in os.environ.items() if name not in _SECRETS}, **own}


def _held_bytes(pid: str) -> int:
    """A process's memory without what it shares: pages of files, which the kernel can drop; 0 when it is gone."""
    try:
        _, resident, shared = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
