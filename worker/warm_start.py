"""The supervisor's handle on the fork server: start it, request runs, and replace it when it is lost.

Linux only. The server ends with its supervisor: by the parent-death signal, and when the socket between them closes.
"""

import ctypes
import errno
import hashlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from jobs import tracing
from worker import fork_server
from worker.failures import GPU_VARIABLE

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
_READY_TIMEOUT_S = 120.0
_ANSWER_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 5.0
_TICK_S = 0.1
# Consecutive failed starts after which the server is given up.
_MAX_STARTS = 3
# Variables that are read on first use, as by CUDA, not on import, so that each run may have its own.
_PER_RUN = frozenset({tracing.VARIABLE, GPU_VARIABLE, "CUDA_VISIBLE_DEVICES"})
_PACKAGES = ("worker", "trainer_core", "jobs")
_ROOT = Path(__file__).resolve().parent.parent


class ColdReason(StrEnum):
    """Why a run was not forked; part of the event `first_step`."""

    SWITCHED_OFF = "switched_off"
    GPU = "gpu"
    BITSANDBYTES = "bitsandbytes"
    UNSUPPORTED = "unsupported"
    UNFIT = "unfit"
    LOST = "lost"
    NOT_READY = "not_ready"
    CODE_CHANGED = "code_changed"
    ENVIRONMENT = "environment"


class ColdStart(Exception):
    """The run cannot be forked and must import everything itself."""

    def __init__(self, reason: ColdReason, details: str = "") -> None:
        super().__init__(f"{reason.value}: {details}" if details else reason.value)
        self.reason = reason


class ForkedProcess:
    """A child of this process that the fork server forked, with the used part of `subprocess.Popen`'s interface."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self, timeout: float) -> int:
        """Its exit code, negative for a signal. Call it once. Raises `subprocess.TimeoutExpired`."""
        descriptor = os.pidfd_open(self.pid)
        try:
            if not select.select([descriptor], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        finally:
            os.close(descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class ForkServer:
    """Starts the server and requests runs. Not thread-safe.

    Args:
        command: the command of a training process, `(sys.executable, "-m", MODULE)`.
        environment: all variables of the server and its runs, except those that each run sets for itself.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = tuple(command), dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._is_ready = False
        self._starts = 0
        self._stamp = self._control_group = ""
        self._off: tuple[ColdReason, str] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id; None if it is not running."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the server, which then imports in the background. Returns immediately; never raises."""
        if self._process or self._off:
            return
        if sys.platform != "linux" or len(self._command) != 3 or self._command[:2] != (sys.executable, "-m"):
            self._give_up(ColdReason.UNSUPPORTED, "fork servers need Linux, and a run that is a Python module")
            return
        if self._starts >= _MAX_STARTS:
            self._give_up(ColdReason.UNFIT, f"it ended {self._starts} times before it was ready")
            return
        self._stamp, self._control_group = code_stamp(), _control_group()
        try:
            self._launch()
        except OSError as error:
            log.warning("no fork server: %s", error)

    def _launch(self) -> None:
        own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "worker.fork_server", self._command[2], str(os.getpid()), fork_server.PADDING]
        receive_orphans(True)
        try:
            self._process = subprocess.Popen(
                command, stdin=its.fileno(), env={**self._environment, **fork_server.VARIABLES}, start_new_session=True
            )
        except OSError:
            own.close()
            raise
        finally:
            its.close()
        self._channel, self._is_ready = own, False
        self._starts += 1

    def fork(
        self, folder: Path, environment: Mapping[str, str], descriptors: Sequence[int], give_up: Callable[[], bool]
    ) -> ForkedProcess:
        """Forks a new run, which waits for a first byte on its standard input.

        Args:
            folder: the attempt's directory.
            environment: all variables of the run.
            descriptors: its standard input, its log, its reports, and others to keep open.
            give_up: returns whether to stop waiting for the server's imports.

        Raises:
            ColdStart: there is no new run, and the attempt left no process behind.
        """
        if self._off:
            raise ColdStart(*self._off)
        try:
            return self._forked(folder, environment, descriptors, give_up)
        except (OSError, ValueError) as error:
            # Whatever went wrong, the run can start without the server.
            self._replace()
            raise ColdStart(ColdReason.LOST, f"{type(error).__name__}: {error}") from error

    def _forked(
        self, folder: Path, environment: Mapping[str, str], descriptors: Sequence[int], give_up: Callable[[], bool]
    ) -> ForkedProcess:
        if self._process is None or _has_ended(self._process.pid):
            self._replace()
            raise ColdStart(ColdReason.LOST)
        self._check(environment)
        self._await_ready(give_up)
        changes = {name: environment.get(name) for name in _PER_RUN}
        request = {"folder": str(folder), "directory": os.getcwd(), "parent": os.getpid(), "environment": changes}
        answer = self._ask(request, descriptors)
        if "refused" in answer:
            raise ColdStart(ColdReason.UNFIT, answer["refused"])
        try:
            _has_ended(answer["pid"])
            return ForkedProcess(answer["pid"])
        except ChildProcessError as error:
            self._give_up(ColdReason.UNSUPPORTED, f"the kernel does not hand over orphans: {error}")
            raise ColdStart(ColdReason.UNSUPPORTED) from error

    def close(self) -> None:
        """Ends the server and any fork that has not become a run."""
        if self._process is None:
            return
        if self._channel:
            self._channel.close()
        _kill_group(self._process.pid)
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.error("the fork server, process %d, cannot be killed", self._process.pid)
        reap_group(self._process.pid)
        receive_orphans(False)
        self._process = self._channel = None

    def _check(self, environment: Mapping[str, str]) -> None:
        """Raises `ColdStart` if a forked run would differ from one that starts without the server."""
        if code_stamp() != self._stamp:
            self._starts = 0
            self._replace()
            raise ColdStart(ColdReason.CODE_CHANGED)
        names = (self._environment.keys() | environment.keys()) - _PER_RUN
        if changed := sorted(name for name in names if self._environment.get(name) != environment.get(name)):
            raise ColdStart(ColdReason.ENVIRONMENT, ", ".join(changed))
        if _control_group() != self._control_group:
            self._replace()
            raise ColdStart(ColdReason.ENVIRONMENT, "the control group")

    def _await_ready(self, give_up: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not self._is_ready:
            message = self._receive(_TICK_S)
            if message is None and (give_up() or time.monotonic() > deadline):
                if not give_up():
                    self._replace()
                raise ColdStart(ColdReason.NOT_READY)
            if message is not None and "ready" not in message:
                self._give_up(ColdReason.UNFIT, str(message.get("unfit")))
                raise ColdStart(ColdReason.UNFIT)
            if message is not None:
                self._is_ready, self._starts = True, 0
                log.info("the fork server is ready after %.1f s", message["ready"])

    def _ask(self, request: dict[str, Any], descriptors: Sequence[int]) -> dict[str, Any]:
        assert self._channel
        message = json.dumps(request).encode()
        if len(message) > fork_server.REQUEST_BYTES:
            raise ColdStart(ColdReason.ENVIRONMENT, "the request is too long")
        try:
            socket.send_fds(self._channel, [message], list(descriptors))
        except OSError as error:
            self._replace()
            raise ColdStart(ColdReason.LOST, str(error)) from error
        answer = self._receive(_ANSWER_TIMEOUT_S)
        if answer is None:
            self._replace()
            raise ColdStart(ColdReason.LOST, "it does not answer")
        return answer

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """A message from the server, or None on timeout. Raises `ColdStart` if the server has ended."""
        assert self._channel
        if not select.select([self._channel], [], [], seconds)[0]:
            return None
        try:
            message = self._channel.recv(fork_server.REQUEST_BYTES)
        except OSError as error:
            if error.errno != errno.ECONNRESET:
                raise
            message = b""
        if not message:
            self._replace()
            raise ColdStart(ColdReason.LOST)
        return json.loads(message)

    def _replace(self) -> None:
        """Ends the server and starts a new one for the next run."""
        self.close()
        self.start()

    def _give_up(self, reason: ColdReason, details: str) -> None:
        log.warning("runs start without the fork server (%s): %s", reason.value, details)
        self.close()
        self._off = reason, details


def _has_ended(child: int) -> bool:
    """Whether a child has ended, without reaping it, so that its id is not reused. Raises `ChildProcessError`."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def needs_bitsandbytes(spec: Mapping[str, Any], models: Mapping[str, str]) -> bool:
    """Whether a job uses quantised weights or optimizer state, which the fork server cannot prepare.

    Args:
        spec: the resolved job.
        models: the paths of its models, by name.
    """
    if spec.get("load_in_4bit") or spec.get("ref_load_in_4bit") or str(spec.get("optim")).endswith("bit"):
        return True
    configs = (Path(place) / "config.json" for place in models.values())
    return any(b"quantization_config" in config.read_bytes() for config in configs if config.is_file())


def receive_orphans(wanted: bool) -> None:
    """Sets whether orphaned descendants become children of this process."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def reap_group(group: int) -> None:
    """Reaps orphans that became children of this process, in a process group that is being killed."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if not os.waitpid(-group, os.WNOHANG)[0]:
                time.sleep(0.01)
        except ChildProcessError:
            return


def code_stamp() -> str:
    """A fingerprint that changes when this product or an installed package changes on disk."""
    digest = hashlib.sha256()
    for path in sorted(path for name in _PACKAGES for path in (_ROOT / name).rglob("*.py")):
        with suppress(FileNotFoundError):  # removed a moment ago
            status = path.stat()
            digest.update(f"{path} {status.st_mtime_ns} {status.st_size}\n".encode())
    for entry in sys.path:
        # Installing a package adds, renames or removes a directory here.
        if Path(entry).name in ("site-packages", "dist-packages") and os.path.isdir(entry):
            digest.update(f"{entry} {os.stat(entry).st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _control_group() -> str:
    """This process's control group, which a server inherits at its start."""
    try:
        return Path("/proc/self/cgroup").read_text(encoding="utf-8")
    except OSError:
        return ""


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
