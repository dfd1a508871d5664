"""The supervisor's handle on a training process: start it, read its reports, send requests, end it and its descendants."""

import json
import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from worker.warm_start import ColdReason, ColdStart, ForkedProcess, ForkServer

log = logging.getLogger(__name__)

# The training process needs none of these, and it cannot leak what it lacks into a log or an artifact.
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
# A forked process waits for this empty line.
_GO = b"\n"
_UNKILLABLE_S = 10.0
# Field indices in /proc/<pid>/stat, counted after the command's name.
_PARENT_FIELD, _SESSION_FIELD = 1, 3


class SupervisedProcess:
    """A process in its own session. Reports arrive over a pipe; lines for it go to its standard input.

    Attributes:
        heard_at: when it last sent something, by `time.monotonic`.
        killed_at: when it was first killed, if it was.
        peak_memory_bytes: the highest observed memory use of it and its children.
    """

    def __init__(self, process: "subprocess.Popen[bytes] | ForkedProcess", reports: int, its_input: int) -> None:
        """Takes over the ends of both pipes."""
        self._process, self._reports, self._input = process, reports, its_input
        self.pid = process.pid
        self.heard_at = time.monotonic()
        self.killed_at: float | None = None
        self._pinged_at = 0.0
        self._buffer = b""
        self._is_silent = False
        self.peak_memory_bytes = 0

    def resident_bytes(self) -> int | None:
        """Memory that the process holds, in bytes; None if it is gone or the kernel does not report it."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError, ValueError):
            return None
        return pages * os.sysconf("SC_PAGE_SIZE")

    def look_at_memory(self) -> None:
        """Samples the memory of the process and its children. Call it often: once they are gone it cannot be measured."""
        with suppress(OSError):
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
            self.peak_memory_bytes = max(self.peak_memory_bytes, sum(map(_held_bytes, [str(self.pid), *children])))

    def hear(self, seconds: float) -> list[dict[str, Any]] | None:
        """Reports that arrive within `seconds`; None when there will be no more."""
        self._ping()
        if not self._is_silent:
            ready, _, _ = select.select([self._reports], [], [], seconds)
            if not ready:
                if not self._has_ended(0):
                    return []
                # It may have sent its final report since, or a descendant may hold the pipe open although it has ended.
                if not select.select([self._reports], [], [], 0)[0]:
                    return None
            data = os.read(self._reports, 2**16)
            self._is_silent = not data
            if data:
                self.heard_at = time.monotonic()
                *lines, self._buffer = (self._buffer + data).split(b"\n")
                return [json.loads(line) for line in lines]
        # The reports end a moment before the process does.
        return None if self._has_ended(seconds) else []

    def kill(self) -> None:
        """Kills every process of its group."""
        self.killed_at = self.killed_at or time.monotonic()
        self._signal(signal.SIGKILL)

    def end(self) -> tuple[int | None, list[int]]:
        """Ends everything that is left. Returns its exit code and the processes of its session that still live.

        The code is None if the kernel cannot end it, as may happen when a driver or a file server hangs.
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
        """Whether it ends within `seconds`. It is not reaped here, so that its id is not reused."""
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
            # It has ended or does not listen; both are handled elsewhere.
            return

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            # A process that was just forked has neither its own group nor children yet.
            _kill(self.pid, number)


class TrainingProcess(SupervisedProcess):
    """A training process. Requests go to its standard input.

    Args:
        command: what to run; the attempt's directory, the reports' file descriptor and this process's id are appended.
        folder: the attempt's directory; the process's output goes to `log.txt` there.
        environment: variables to set in addition to this process's own.
        lock: a file descriptor that the process inherits and keeps open.
        server: the server that forks the process, or the reason for starting without one.
        give_up: returns whether to stop waiting for the fork server.

    Attributes:
        cold_reason: why it was not forked; None when it was.
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
        with pipes() as (reports, write_end, given, its_input), (folder / "log.txt").open("ab") as output:
            try:
                if isinstance(server, ColdReason):
                    raise ColdStart(server)
                descriptors = [given, output.fileno(), write_end, *locks]
                process: subprocess.Popen[bytes] | ForkedProcess = server.fork(folder, whole, descriptors, give_up)
                os.write(its_input, _GO)
            except ColdStart as error:
                log.info("the run starts cold: %s", error)
                self.cold_reason = error.reason
                process = subprocess.Popen(
                    [*command, str(folder), str(write_end), str(os.getpid())],
                    stdin=given,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(write_end, *locks),
                    start_new_session=True,
                    env=whole,
                )
        super().__init__(process, reports, its_input)

    def ask_to_stop(self) -> None:
        """Asks it to save a checkpoint at its next step boundary and exit."""
        self._say(b"stop\n")

    def interrupt(self) -> None:
        """Ends it without waiting for a step, but lets it close its files."""
        self._signal(signal.SIGINT)

    def abort(self) -> None:
        """Ends it and makes it write its stack traces to the log."""
        self._signal(signal.SIGABRT)


@contextmanager
def pipes() -> Generator[tuple[int, int, int, int]]:
    """Two pipes for a process: where to hear its reports, its end of that; its standard input, where to write to it.

    Closes the process's ends when it has been started, and all four if it could not be.
    """
    reports, write_end = os.pipe()
    given, its_input = os.pipe()
    # A process that does not read must not block its supervisor.
    os.set_blocking(its_input, False)
    try:
        yield reports, write_end, given, its_input
    except BaseException:
        os.close(reports)
        os.close(its_input)
        raise
    finally:
        os.close(given)
        os.close(write_end)


def session_processes(session: int) -> list[int]:
    """Living processes of a session (Linux; empty elsewhere)."""
    return [pid for pid, state, _ in _members(session) if state not in "ZX"]


def _reap(session: int) -> None:
    """Reaps ended processes of a session that this process inherited as orphans."""
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
    """All variables of a training process: this process's without secrets, overridden by `own`."""
    return {**{name: value for name, value in os.environ.items() if name not in _SECRETS}, **own}


def _held_bytes(pid: str) -> int:
    """A process's own memory in bytes, without what it shares, such as pages of files; 0 if it is gone."""
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
