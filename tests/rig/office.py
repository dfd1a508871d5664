"""A worker of tasks with stand-in answers (`tests.rig.answers`), in a thread of the test."""

import os
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jobs.database import Database
from jobs.records import TaskRecord
from jobs.repository import tasks
from jobs.settings import Settings
from jobs.states import TaskKind, TaskState, TaskWorker
from tests import forking
from tests.fakes import FakeQueue
from tests.stack import until
from worker.answering_process import AnsweringProcess, answering_environment
from worker.dispatcher import run_round
from worker.task_supervisor import TaskSupervisor, Trade

ANSWERS = "tests.rig.answers"


@dataclass
class Office:
    """A supervisor of tasks that looks for work all the time, and a dispatcher beside it."""

    database: Database
    settings: Settings
    queue: FakeQueue = field(default_factory=FakeQueue)
    ended: threading.Event = field(default_factory=threading.Event)
    supervisor: TaskSupervisor | None = None

    def ask(self, tenant: str = "default", kind: TaskKind = TaskKind.PREVIEW, **request: Any) -> str:
        with self.database.transaction() as session:
            return tasks.insert(session, kind, tenant, request)

    def task(self, task_id: str) -> TaskRecord:
        with self.database.reading() as session:
            found = tasks.get(session, task_id)
        assert found
        return found

    def over(self, task_id: str) -> TaskRecord:
        """The task once it is over."""
        return until(lambda: found if TaskState((found := self.task(task_id)).state).is_final else None, every_s=0.02)

    def running(self, task_id: str) -> TaskRecord:
        return until(lambda: found if (found := self.task(task_id)).state == TaskState.RUNNING else None, every_s=0.02)

    def cancel(self, task_id: str) -> bool:
        with self.database.transaction() as session:
            return tasks.cancel_queued(session, task_id) or tasks.request_cancel(session, task_id)


@contextmanager
def office(
    database: Database,
    settings: Settings,
    *,
    lanes: int = 1,
    module: str = ANSWERS,
    trains: bool = False,
    forks: bool = True,
    **limits: Any,
) -> Generator[Office]:
    """Opens an office for checks; at the end its processes are gone.

    Args:
        module: what has the answers.
        trains: whether they need the training libraries.
        forks: whether answering processes are forked, not started as the product starts them.
        limits: settings.
    """
    settings = settings.model_copy(update={"request_poll_s": 0.05, "dispatch_s": 0.1, "memory_pause_s": 0.0, **limits})
    found = Office(database, settings)

    def work() -> None:
        trade = Trade(TaskWorker.CHECKS, module, lanes=lanes)
        found.supervisor = TaskSupervisor(trade, settings, is_draining=found.ended.is_set)
        while not found.ended.is_set():
            run_round(database, found.queue, settings)
            found.supervisor.run(database, found.queue)
            time.sleep(0.02)
        found.supervisor.close()

    with answering_processes(settings, trains=trains, forks=forks):
        thread = threading.Thread(target=work, name="office")
        thread.start()
        try:
            yield found
        finally:
            found.ended.set()
            thread.join()


@contextmanager
def answering_processes(settings: Settings, *, trains: bool = False, forks: bool = True) -> Generator[None]:
    """Answering processes that start in the block find the database; see `office`."""
    if forks:
        forking.prepare(trains=trains)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAFDIL_DATABASE_URL", settings.database)
        patch.setenv("TAFDIL_DATA_DIR", str(settings.data_dir))
        if settings.models_dir:
            patch.setenv("TAFDIL_MODELS_DIR", str(settings.models_dir))
        if forks:
            patch.setattr(AnsweringProcess, "_launch", staticmethod(partial(_forked, trains)))
        yield


def _forked(trains: bool, module: str, given: int, reports: int, _: Sequence[int]) -> Any:
    """Does what `AnsweringProcess._launch` does, with a process that has imported it all."""
    command = [sys.executable, "-m", "worker.answering", module, str(reports), str(os.getpid())]
    environment = answering_environment(os.environ)
    with open(2, "wb", closefd=False) as output:
        return forking.fork(command, environment, output, trains=trains, descriptors={0: given, reports: reports})


def lines_of(path: Path) -> list[list[int]]:
    """Process and attempt of each time that an answer began."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [[int(part) for part in line.split()] for line in text.splitlines()]
