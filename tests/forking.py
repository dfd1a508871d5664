"""Starts Python processes for tests by forking one that has already imported the libraries they share.

A stack has six or more processes, and their imports cost more CPU time than most tests; the training libraries alone take
seven seconds. A forked process behaves like `python -m MODULE` with its environment: it is a child of the tests' process,
runs in its own session and ends with its parent. But `/proc` shows the command and environment of the process it was forked
from.

A train worker that is forked with the training libraries also forks its fork server, which would import them once more.
`tests/faults/test_fork_server.py` and `tests/integration/test_warm_start.py` start fork servers as the product does.
"""

import atexit
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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import IO, Any, NamedTuple, NoReturn

from tafdil.local_stack import _die_with_parent
from worker import fork_server
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
_TICK_S = 0.01
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


def fork(command: Sequence[str], environment: Mapping[str, str], output: IO[bytes], *, trains: bool = False) -> Forked:
    """Starts `python -m MODULE ARGUMENTS`, writing to `output`.

    Args:
        trains: whether it needs the training libraries.
    """
    request = {
        "command": list(command[2:]),
        "environment": dict(environment),
        "directory": os.getcwd(),
        "parent": os.getpid(),
        "trains": trains,
    }
    channel = _channel(trains)
    receive_orphans(True)
    try:
        socket.send_fds(channel, [json.dumps(request).encode()], [output.fileno()])
        answer = json.loads(channel.recv(fork_server.REQUEST_BYTES))
    finally:
        receive_orphans(False)
    assert "pid" in answer, answer
    process = Forked(answer["pid"])
    # From now on, signals to its group reach it.
    while process.poll() is None and os.getsid(process.pid) != process.pid:
        time.sleep(0.001)
    return process


def ran(command: Sequence[str], environment: Mapping[str, str], output: IO[bytes], *, trains: bool = False) -> int:
    """Runs a Python module to its end, forked if possible, and returns its exit code."""
    if may_fork(command, environment):
        return fork(command, environment, output, trains=trains).wait()
    return subprocess.run(command, env=environment, stdout=output, stderr=output, check=False).returncode


class _Source(NamedTuple):
    """The process that forks, and the socket to it. The process ends when the socket is closed."""

    process: "subprocess.Popen[bytes]"
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
            command = [sys.executable, "-m", __name__, *(["trains", fork_server.PADDING] if trains else [])]
            process = subprocess.Popen(command, stdin=its.fileno(), start_new_session=True, env=environment)
        _sources[key] = _Source(process, own)
    return _sources[key].channel


@atexit.register
def close() -> None:
    """Ends the forking processes; the next fork starts a new one."""
    for trains in (False, True):
        if source := _sources.pop((os.getpid(), trains), None):
            source.channel.close()
            source.process.wait()


def _become(request: dict[str, Any], output: int) -> None:
    """Runs the requested module in this copy of the forking process."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)
    # This process becomes a child of the tests' process only when the process between the two has ended.
    ends_at = time.monotonic() + _HANDED_OVER_S
    while os.getppid() != request["parent"]:
        if time.monotonic() > ends_at:
            os._exit(1)
        time.sleep(0.001)
    _die_with_parent()
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:1] = [request["directory"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.modules.pop("sitecustomize", None)
    with suppress(ImportError):
        import_module("sitecustomize")
    if request["trains"]:
        ForkServer._launch = _launch_copy
    module, *arguments = request["command"]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


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


def _become_fork_server(server: ForkServer, channel: int, parent: int) -> NoReturn:
    """Runs the fork server in this copy of a pool process of Celery's, and a run in each copy that the server forks."""
    code = 1
    try:
        os.setsid()
        os.dup2(channel, 0)
        os.closerange(3, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)
        for number in signal.valid_signals():
            # As when a program is replaced: what is ignored stays ignored.
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        # Celery's, as are the handlers of its log.
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        logging.captureWarnings(False)
        logging.root.handlers.clear()
        logging.root.setLevel(logging.WARNING)
        atexit._clear()
        os.environ.clear()
        os.environ.update({**server._environment, **fork_server.VARIABLES})
        arguments = [server._command[2], str(parent), fork_server.PADDING]
        sys.argv = ["worker.fork_server", *arguments]
        fork_server._show_command([sys.executable, "-m", *sys.argv])
        code = fork_server.main()
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does at its end
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
        message, descriptors, _, _ = socket.recv_fds(channel, fork_server.REQUEST_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        if not message:
            return
        run, answer = fork_server._try_to_fork(channel)
        if run is None:
            _become(json.loads(message), descriptors[0])
            return
        fork_server._answer(channel, **answer)
        os.close(descriptors[0])


if __name__ == "__main__":
    main()
