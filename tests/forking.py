"""Python processes that tests start, forked from one process that has imported the libraries that they share.

A stack has six or more of them, and their imports cost more CPU time than most tests; those of a training cost seven
seconds. A forked process becomes what `python -m MODULE` with its environment would be: a child of the tests' process, in a
session of its own, that ends with it. `/proc` shows the command and the environment of the process that it was forked from.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import IO, Any, NamedTuple

from tafdil.local_stack import _die_with_parent
from worker import fork_server
from worker.warm_start import receive_orphans

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
_HANDED_OVER_S = 30.0


class Forked:
    """A forked process, with what a stack uses of `subprocess.Popen`."""

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
    """Whether a command is a Python module's, on a system where processes are handed over, with the machine's own clock."""
    # Libraries that are imported already have kept the function that tells the time.
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
    # From here on signals to its group reach it.
    while process.poll() is None and os.getsid(process.pid) != process.pid:
        time.sleep(0.001)
    return process


def ran(command: Sequence[str], environment: Mapping[str, str], output: IO[bytes], *, trains: bool = False) -> int:
    """The exit code of a Python module that ran to its end, forked where that can be."""
    if may_fork(command, environment):
        return fork(command, environment, output, trains=trains).wait()
    return subprocess.run(command, env=environment, stdout=output, stderr=output, check=False).returncode


class _Source(NamedTuple):
    """The process that forks, and the socket to it: when that is closed, it ends."""

    process: "subprocess.Popen[bytes]"
    channel: socket.socket


_sources: dict[tuple[int, bool], _Source] = {}


def _channel(trains: bool) -> socket.socket:
    """To a process that forks, which is started when this one first needs it."""
    key = os.getpid(), trains
    if key not in _sources:
        own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            environment = {**os.environ, **fork_server.VARIABLES, "PYTHONUNBUFFERED": "1"}
            command = [sys.executable, "-m", __name__, *(["trains"] if trains else [])]
            process = subprocess.Popen(command, stdin=its.fileno(), start_new_session=True, env=environment)
        _sources[key] = _Source(process, own)
    return _sources[key].channel


@atexit.register
def close() -> None:
    """Ends the processes that fork; the next fork starts another one."""
    for trains in (False, True):
        if source := _sources.pop((os.getpid(), trains), None):
            source.channel.close()
            source.process.wait()


def _become(request: dict[str, Any], output: int) -> None:
    """Runs the module of a request in this copy of the process that forks."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)
    # Until the process between the two has ended, this one is not yet the child of the tests' process.
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
    module, *arguments = request["command"]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


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
    # The first fork ends threads that numpy has started and that no fork may have.
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
