"""The local stack as tests run it: as it is, or on a database and a broker that live elsewhere."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tafdil.local_stack import LocalStack, Service
from tests import forking

# How long a test waits for what must happen but has no set time: the machine may be busy with other work.
ENOUGH_S = 240.0
# Workers whose answering processes need the training libraries.
_ANSWERING = ("generation-worker", "checks-worker", "exports-worker")


class StackUnderTest(LocalStack):
    """A stack with handles on its processes.

    Args:
        external: environment of a database and a broker to use instead of the embedded ones.
        forks: whether Python's processes are forked (`tests/forking.py`), not started as `tafdil serve` starts them.
    """

    def __init__(self, data_dir: Path, external: dict[str, str] | None = None, *, forks: bool = True) -> None:
        super().__init__(data_dir, port=0, say=lambda _: None)
        self._external, self._forks = external, forks

    def _plan(self) -> list[Service]:
        services = super()._plan()
        if self._external:
            services = services[1:]
            for service in services:
                service.environment.update(self._external)
        return services

    def _launch(self, service: Service) -> None:
        if not (self._forks and forking.may_fork(service.command, service.environment)):
            super()._launch(service)
            return
        service.launched_at = time.monotonic()
        logs = self.data_dir / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{service.name}.log").open("ab") as output:
            environment = {**service.environment, "TAFDIL_PART": service.name}
            forked: Any = forking.fork(service.command, environment, output, trains=self._trains(service))
        service.process = forked

    def _trains(self, service: Service) -> bool:
        """Whether it is forked with the training libraries. A rig's worker trains without them."""
        return service.name in _ANSWERING or "worker.tasks" in service.command

    def pid(self, name: str) -> int:
        process = next(service.process for service in self._services if service.name == name)
        assert process
        return process.pid

    def kill_process(self, name: str) -> None:
        """SIGKILL to the main process of a service, and to it alone."""
        os.kill(self.pid(name), signal.SIGKILL)

    def restart(self, name: str) -> None:
        """Waits until a service that was told to end has ended and runs again."""
        service = next(service for service in self._services if service.name == name)
        ended = service.process

        def look() -> bool:
            self.watch()
            return service.process is not ended

        until(look)

    def training_pids(self) -> list[int]:
        """The training processes of this stack."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if "worker.child" in command and any(str(self.data_dir) in part for part in command):
                found.append(process.pid)
        return found

    def all_pids(self) -> set[int]:
        """Every process of the stack, with all descendants."""
        roots = [psutil.Process(s.process.pid) for s in self._services if s.process and s.process.poll() is None]
        return {p.pid for root in roots for p in [root, *root.children(recursive=True)]}


class ForkedStack(StackUnderTest):
    """A stack with the arguments of `LocalStack`, for programs that start one themselves."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        LocalStack.__init__(self, *arguments, **options)
        self._external, self._forks = None, True


class OnlyTheAPI(StackUnderTest):
    """A stack without workers, which starts in a moment."""

    def _plan(self) -> list[Service]:
        return [service for service in super()._plan() if service.name in ("valkey", "api")]


def alive(pids: set[int]) -> set[int]:
    """Those that still run; a zombie does not."""

    def lives(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return {pid for pid in pids if lives(pid)}


def until(what: Callable[[], Any], seconds: float = ENOUGH_S, every_s: float = 0.1) -> Any:
    """The first true value of `what`, or a failure after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        if value := what():
            return value
        assert time.monotonic() < deadline, f"nothing after {seconds} s"
        time.sleep(every_s)
