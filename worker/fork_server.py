"""A process that imports the training libraries once, and forks runs on request.

`python -m worker.fork_server MODULE PARENT_PID` imports MODULE, calls its `preload()`, and serves requests on the
Unix socket that is its standard input. A request is a JSON message with the descriptors of the new process; the answer names
that process, which by then is a child of PARENT_PID. So its supervisor waits for it, signals it, and takes it down when it
dies, as if it had started it itself. The new process does nothing until a first byte arrives on its standard input.

The server computes nothing: a process forked after a tensor operation may hang in its first one. See
docs/decisions/0002-a-process-per-attempt.md.
"""

import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from worker.parent_death import die_with_parent

REQUEST_BYTES = 2**16
PADDING = " " * 1024
"""The last argument of the server's command: space for the command line that `ps` shows for a run."""
VARIABLES = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Set only for the server: pyarrow's default allocator would start a thread."""
# Importing it queries the GPU's capability. Runs that need it start without the server.
_NEVER_IMPORTED = "bitsandbytes"
# Field indices in /proc/<pid>/stat, counted after the command's name.
_ARGUMENTS_START, _ARGUMENTS_END = 45, 46


def unfit() -> str | None:
    """Why a fork of this process would not be safe, or None."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "it has initialised a GPU"
    threads = len(os.listdir("/proc/self/task"))
    return None if threads == 1 else f"it has {threads} threads"


def preload(module: str) -> None:
    """Lets a module import what its runs need, and leaves the process ready to fork."""
    sys.modules[_NEVER_IMPORTED] = None  # pyright: ignore[reportArgumentType]  # Python's marker for a blocked import
    importlib.import_module(module).preload()
    # Everything here is permanent: a run's garbage collector need not touch, and thereby copy, every page.
    gc.collect()
    gc.freeze()
    # OpenBLAS starts threads when numpy is imported, and stops them before a fork until they are needed.
    with warnings.catch_warnings():
        # Python 3.12 and later warn of these threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def serve(channel: socket.socket, module: str) -> bool:
    """Answers requests until the supervisor is gone (False). Returns True in each new process."""
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(channel, REQUEST_BYTES, 8, socket.MSG_CMSG_CLOEXEC)
            if not message:
                return False
            run, answer = _try_to_fork(channel)
            if run is not None:
                _answer(channel, **answer)
        except (BrokenPipeError, ConnectionResetError):
            return False
        if run is None:
            become_run(json.loads(message), descriptors, module)
            return True
        for descriptor in descriptors:
            os.close(descriptor)


def _try_to_fork(channel: socket.socket) -> tuple[int | None, dict[str, Any]]:
    """The new process's id (0 if the fork failed; None in the new process) and the answer to the supervisor."""
    if reason := unfit():
        return 0, {"refused": reason}
    try:
        run = _fork(channel)
    except OSError as error:
        return 0, {"refused": str(error)}
    return run, {"pid": run}


def _answer(channel: socket.socket, **fields: Any) -> None:
    channel.send(json.dumps(fields).encode())


def _fork(channel: socket.socket) -> int | None:
    """Forks a process whose parent is the supervisor. Returns its id, or None in the new process. Raises `OSError`.

    An intermediate process exits at once, and the kernel gives its orphan to the nearest ancestor that asked for orphans:
    the supervisor. That has happened by the time the intermediate process has been waited for.
    """
    answer, tell = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            run = os.fork()
            if run == 0:
                # While this end of the socket stays open, the supervisor would not notice the server's death.
                channel.close()
                for descriptor in (answer, tell):
                    os.close(descriptor)
                return None
            os.write(tell, str(run).encode())
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    os.close(tell)
    with os.fdopen(answer, "rb") as file:
        told = file.read()
    _, status = os.waitpid(between, 0)
    if not told:
        raise OSError(f"a process could not be forked: {os.strerror(os.waitstatus_to_exitcode(status))}")
    return int(told)


def become_run(request: dict[str, Any], descriptors: list[int], module: str) -> None:
    """Turns this copy of the server into what `python -m MODULE` would be for the request."""
    given, log, reports, *lock = descriptors
    if not os.read(given, 1):
        # The supervisor is gone, or has started the run another way.
        os._exit(0)
    os.setsid()
    os.dup2(given, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    kept = {0, 1, 2, reports, *lock}
    for descriptor in {int(name) for name in os.listdir("/proc/self/fd")} - kept:
        try:
            os.close(descriptor)
        except OSError:
            continue  # the listing's own
    for descriptor in kept:
        os.set_inheritable(descriptor, True)
    for number in signal.valid_signals():
        # A library may have installed one on import.
        if callable(handler := signal.getsignal(number)) and handler is not signal.default_int_handler:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.chdir(request["directory"])
    os.environ.update({name: value for name, value in request["environment"].items() if value is not None})
    for name in [*VARIABLES, *(name for name, value in request["environment"].items() if value is None)]:
        os.environ.pop(name, None)
    # Python reseeds `random` itself; without this every run would draw the same numbers from numpy.
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    arguments = [request["folder"], str(reports), str(request["parent"])]
    sys.argv = [str(sys.modules[module].__file__), *arguments]
    _show_command([sys.executable, "-m", module, *arguments])


def _show_command(arguments: list[str]) -> None:
    """Makes `ps` show a run's own command line, as far as the server's has space for it."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    start, end = int(fields[_ARGUMENTS_START]), int(fields[_ARGUMENTS_END])
    text = b"".join(os.fsencode(argument) + b"\0" for argument in arguments)[: end - start - 1]
    if start:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, len(text))


def main() -> int:
    """Serves requests, or in a forked process performs the run. Returns the exit code."""
    module, parent = sys.argv[1], int(sys.argv[2])
    die_with_parent(parent)
    began = time.monotonic()
    channel = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    preload(module)
    if reason := unfit():
        _answer(channel, unfit=reason)
        return 0
    _answer(channel, ready=round(time.monotonic() - began, 3))
    return sys.modules[module].main() if serve(channel, module) else 0


if __name__ == "__main__":
    sys.exit(main())
