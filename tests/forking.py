"""Starts Python processes for tests by forking one that has already imported the libraries they share.

A stack has six or more processes, and their imports cost more CPU time than most tests; the training libraries alone take
seven seconds. A forked process behaves like `python -m MODULE` with its environment: it is a child of the tests' process,
runs in its own session and ends with its parent. But `/proc` shows the command and environment of the process it was forked
from.

A train worker that is forked with the training libraries also forks its fork server, which would import them once more. A
forked process that itself starts processes here (`copy_itself`) forks them from a copy of itself.
`tests/faults/test_fork_server.py` and `tests/integration/test_warm_start.py` start fork servers as the product does.
"""

import atexit
import ctypes
import fcntl
import gc
import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import IO, Any, NamedTuple, NoReturn

from jobs.settings import get_settings
from tafdil.local_stack import _die_with_parent
from worker import fork_server
from worker.answering_process import AnsweringProcess, answering_environment
from worker.warm_start import ForkServer, receive_orphans

# Modules that read no settings when they are imported.
_MODULES = (
    "api.app",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "jobs.retention",
    "jobs.service",
    "kombu.transport.redis",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "uvicorn.main",
    "uvicorn.protocols.http.auto",
)
# Also where it runs as `__main__`.
_NAME = "tests.forking"
_TICK_S = 0.01
NEW_NETWORK = 0x40000000
_HANDED_OVER_S = 240.0


class Forked:
    """A forked process, with the methods of `subprocess.Popen` that a stack uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(_TICK_S)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def may_fork(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a command runs a Python module, on a system that can hand over processes, with the real clock."""
    # Libraries that are already imported hold on to the clock function they imported.
    has_clock = "TAFDIL_TEST_CLOCK_OFF_S" not in environment
    return sys.platform == "linux" and list(command[:2]) == [sys.executable, "-m"] and has_clock


def fork(
    command: Sequence[str],
    environment: Mapping[str, str],
    output: IO[bytes],
    *,
    trains: bool = False,
    descriptors: Mapping[int, int] | None = None,
) -> Forked:
    """Starts `python -m MODULE ARGUMENTS`, writing to `output`.

    Args:
        trains: whether it needs the training libraries.
        descriptors: file descriptors that it inherits, by their numbers there.
    """
    given = descriptors or {}
    request = {
        "command": list(command[2:]),
        "environment": dict(environment),
        "directory": os.getcwd(),
        "parent": os.getpid(),
        "trains": trains,
        "descriptors": list(given),
    }
    channel = _channel(trains)
    receive_orphans(True)
    try:
        socket.send_fds(channel, [json.dumps(request).encode()], [output.fileno(), *given.values()])
        answer = json.loads(channel.recv(fork_server.REQUEST_BYTES))
    finally:
        receive_orphans(False)
    assert "pid" in answer, answer
    process = Forked(answer["pid"])
    # From now on, signals to its group reach it.
    while process.poll() is None and os.getsid(process.pid) != process.pid:
        time.sleep(0.001)
    return process


def prepare(*, trains: bool) -> None:
    """Returns when the forking process has imported what it needs, so that the next fork takes no time."""
    with open(os.devnull, "wb") as nowhere:
        ran([sys.executable, "-m", "this"], os.environ, nowhere, trains=trains)


def ran(command: Sequence[str], environment: Mapping[str, str], output: IO[bytes], *, trains: bool = False) -> int:
    """Runs a Python module to its end, forked if possible, and returns its exit code."""
    if may_fork(command, environment):
        return fork(command, environment, output, trains=trains).wait()
    return subprocess.run(command, env=environment, stdout=output, stderr=output, check=False).returncode


class _Source(NamedTuple):
    """The process that forks, and the socket to it. The process ends when the socket is closed."""

    process: "subprocess.Popen[bytes] | Forked"
    channel: socket.socket


_sources: dict[tuple[int, bool], _Source] = {}


def _channel(trains: bool) -> socket.socket:
    """The socket to the forking process, which starts when it is first needed."""
    key = os.getpid(), trains
    if key not in _sources:
        own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            environment = {**os.environ, **fork_server.VARIABLES, "PYTHONUNBUFFERED": "1"}
            # Read when the libraries are imported; every service of a test has it for its runs.
            environment |= {"HF_HUB_OFFLINE": "1"} if trains else {}
            command = [sys.executable, "-m", _NAME, *(["trains", fork_server.PADDING] if trains else [])]
            process = subprocess.Popen(command, stdin=its.fileno(), start_new_session=True, env=environment)
        _sources[key] = _Source(process, own)
    return _sources[key].channel


def copy_itself() -> None:
    """Lets this process, which was forked with the training libraries, start its own processes from a copy of itself.

    Call it before a tensor operation and before a thread starts.
    """
    own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _end_after(lambda: _serve_as_copy(its.fileno()))
    its.close()
    source = _Source(Forked(pid), own)
    _sources.update({(os.getpid(), False): source, (os.getpid(), True): source})


def _serve_as_copy(channel: int) -> None:
    os.setsid()
    os.dup2(channel, 0)
    os.closerange(3, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)
    _sources.clear()
    atexit._clear()
    sys.argv = [_NAME, "trains"]
    main()


@atexit.register
def close() -> None:
    """Ends the forking processes; the next fork starts a new one."""
    for trains in (False, True):
        if source := _sources.pop((os.getpid(), trains), None):
            source.channel.close()
            source.process.wait()


def _become(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Runs the requested module in this copy of the forking process."""
    os.setsid()
    _inherit(dict(zip([1, *request["descriptors"]], descriptors, strict=True)))
    os.dup2(1, 2)
    # This process becomes a child of the tests' process only when the process between the two has ended.
    ends_at = time.monotonic() + _HANDED_OVER_S
    while os.getppid() != request["parent"]:
        if time.monotonic() > ends_at:
            os._exit(1)
        time.sleep(0.001)
    _die_with_parent()
    _enter_network(request["parent"])
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:1] = [request["directory"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.modules.pop("sitecustomize", None)
    with suppress(ImportError):
        import_module("sitecustomize")
    if request["trains"]:
        ForkServer._launch = _launch_copy
    # Where the module imports this one, it finds this copy of it.
    sys.modules.setdefault(_NAME, sys.modules[__name__])
    _Standby().use()
    module, *arguments = request["command"]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _enter_network(pid: int) -> None:
    """Enters the network of a process, if it has one of its own."""
    if not os.path.samefile(theirs := f"/proc/{pid}/ns/net", "/proc/self/ns/net"):
        with open(theirs, "rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), NEW_NETWORK):
                raise OSError(ctypes.get_errno(), f"cannot enter {theirs}")


def _launch_copy(server: ForkServer) -> None:
    """Does what `ForkServer._launch` does, with a copy of this process, which has imported what the server would import."""
    own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    receive_orphans(True)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_fork_server(server, its.fileno(), parent)
    its.close()
    copy: Any = Forked(pid)
    server._process, server._channel, server._is_ready = copy, own, False
    server._starts += 1


class _Standby:
    """A copy of each pool process of Celery's that becomes its first answering process. Later ones start as in production.

    It is made when the pool process begins: SQLite does not survive a fork of a process that has it open.
    """

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self._pid = 0
        self._launch = AnsweringProcess._launch

    def use(self) -> None:
        from celery.signals import worker_process_init

        worker_process_init.connect(self._prepare, weak=False)
        AnsweringProcess._launch = staticmethod(self._start)

    def _prepare(self, **_: Any) -> None:
        own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            own.close()
            _answer_when_asked(its, parent)
        its.close()
        self._channel = own

    def _start(self, module: str, given: int, reports: int, locks: Sequence[int]) -> Any:
        if self._channel is None:
            return self._launch(module, given, reports, locks)
        with self._channel:
            message = json.dumps({"module": module, "numbers": [0, reports, *locks], "reports": reports})
            socket.send_fds(self._channel, [message.encode()], [given, reports, *locks])
        self._channel = None
        return Forked(self._pid)


def _answer_when_asked(channel: socket.socket, parent: int) -> NoReturn:
    """What the copy of a pool process does."""
    try:
        os.setsid()
        _die_with_parent()
        message, descriptors, _, _ = socket.recv_fds(channel, fork_server.REQUEST_BYTES, 8)
        if message:
            request = json.loads(message)
            _inherit(dict(zip(request["numbers"], descriptors, strict=True)))
            _forget_celery()
            whole = answering_environment(os.environ)
            os.environ.clear()
            os.environ.update(whole)
            # Those of the process that this one is a copy of.
            get_settings.cache_clear()
            sys.argv = ["worker.answering", request["module"], str(request["reports"]), str(parent)]
            runpy.run_module("worker.answering", run_name="__main__", alter_sys=True)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)


def _forget_celery() -> None:
    """Undoes what a pool process of Celery's has set for itself."""
    for number in signal.valid_signals():
        # As when a program is replaced: what is ignored stays ignored.
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    logging.captureWarnings(False)
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    atexit._clear()


def _become_fork_server(server: ForkServer, channel: int, parent: int) -> NoReturn:
    """Runs the fork server in this copy of a pool process of Celery's, and a run in each copy that the server forks."""

    def serve() -> int:
        os.setsid()
        os.dup2(channel, 0)
        os.closerange(3, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)
        _forget_celery()
        os.environ.clear()
        os.environ.update({**server._environment, **fork_server.VARIABLES})
        arguments = [server._command[2], str(parent), fork_server.PADDING]
        sys.argv = ["worker.fork_server", *arguments]
        fork_server._show_command([sys.executable, "-m", *sys.argv])
        return fork_server.main()

    _end_after(serve)


def _end_after(work: Callable[[], int | None]) -> NoReturn:
    """Does the work of a process that was forked in the middle of other work, and ends it as the interpreter would."""
    code = 1
    try:
        try:
            code = work() or 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _inherit(descriptors: Mapping[int, int]) -> None:
    """Gives file descriptors their numbers, and closes all others but the standard streams."""
    # Out of the way first, so that none takes the number of another.
    high = {number: fcntl.fcntl(descriptor, fcntl.F_DUPFD, 500) for number, descriptor in descriptors.items()}
    for number, descriptor in high.items():
        os.dup2(descriptor, number)
    for descriptor in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, *high}:
        with suppress(OSError):
            os.close(descriptor)


def main() -> None:
    channel = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    for name in _MODULES:
        import_module(name)
    if sys.argv[1:]:
        from trainer_core import preloading

        preloading.preload()
    gc.collect()
    gc.freeze()
    # The first fork ends threads that numpy started, which must not exist when forking.
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, fork_server.REQUEST_BYTES, 8, socket.MSG_CMSG_CLOEXEC)
        if not message:
            return
        run, answer = fork_server._try_to_fork(channel)
        if run is None:
            _become(json.loads(message), descriptors)
            return
        fork_server._answer(channel, **answer)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    main()
