"""A process that answers tasks, one after the other: `python -m worker.answering MODULE REPORT_FD PARENT_PID`.

MODULE has the answers (`ANSWERS`, by kind) and may have a `preload()`. A task arrives on standard input as a JSON line: its
id, the token of its lease and its attempt. The answer, or the error, leaves as a JSON line on the given file descriptor.
What a task leaves in memory, such as a loaded model, stays there for the next one. The process never stops by itself: it
dies with its supervisor, or is killed by it. If its supervisor falls silent in the middle of a task, it exits just before
the lease could expire.
"""

import faulthandler
import importlib
import json
import logging
import os
import resource
import select
import signal
import sys
import threading
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

from jobs import logs
from jobs.database import Database
from jobs.errors import BadStatement, DatabaseError
from jobs.records import TaskRecord
from jobs.repository import tasks
from jobs.settings import Settings, get_settings
from jobs.states import TaskKind, TaskState
from trainer_core.disk import is_disk_full
from trainer_core.errors import TafdilError, error_dict
from trainer_core.wording import say
from worker.desk import Answer, Desk
from worker.failures import EXIT_SUPERVISOR_SILENT
from worker.parent_death import TASK_OOM_SCORE, die_with_parent

log = logging.getLogger(__name__)

_ALIVE_EVERY_S = 1.0
_SECOND_LOOK_S = 0.25


class Reports:
    """Writes reports, whole lines at a time, from any thread. While busy, it also reports signs of life."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._lock = threading.Lock()
        self._busy = threading.Event()

    def send(self, kind: str, **fields: Any) -> None:
        # ASCII, because users' text may have halves of surrogate pairs.
        data = memoryview((json.dumps({"type": kind, **fields}) + "\n").encode("ascii"))
        with self._lock:
            while data:
                data = data[self._file.write(data) :]

    def be_busy(self, is_busy: bool) -> None:
        """While idle nobody reads the reports, so signs of life would fill the pipe."""
        self._busy.set() if is_busy else self._busy.clear()

    @property
    def is_busy(self) -> bool:
        return self._busy.is_set()

    def start_signs_of_life(self) -> None:
        def beat() -> None:
            pause = threading.Event()
            while True:
                self._busy.wait()
                self.send("alive")
                pause.wait(_ALIVE_EVERY_S)

        threading.Thread(target=beat, daemon=True, name="signs-of-life").start()


def listen(reports: Reports, silence_s: float) -> "SimpleQueue[dict[str, Any]]":
    """Reads standard input in the background; tasks that arrive are in the queue. The end of input ends this process.

    The supervisor pings during a task, and if it hangs another worker will get the task. So silence then ends this process.
    """
    inbox: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def read() -> None:
        buffer = b""
        while True:
            ready, _, _ = select.select([0], [], [], silence_s)
            if not ready:
                # Check again: if this whole process was suspended, lines may have arrived meanwhile.
                if reports.is_busy and not select.select([0], [], [], _SECOND_LOOK_S)[0]:
                    os._exit(EXIT_SUPERVISOR_SILENT)
                continue
            data = os.read(0, 2**12)
            if not data:
                os._exit(EXIT_SUPERVISOR_SILENT)
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                if line.startswith(b"{"):
                    reports.be_busy(True)
                    inbox.put(json.loads(line))

    threading.Thread(target=read, daemon=True, name="supervisor-input").start()
    return inbox


def answer(
    asked: dict[str, Any], answers: Mapping[TaskKind, Answer], reports: Reports, database: Database, settings: Settings
) -> None:
    """Answers one task and reports the result or the error."""
    task_id = asked["task"]
    with logs.about(task=task_id):
        try:
            task = _held(database, asked)
            if task is None:
                reports.send("stale", task=task_id)
                return
            desk = Desk(task, database, settings, lambda partial: reports.send("partial", task=task_id, partial=partial))
            reports.send("begun", task=task_id)
            result = answers[TaskKind(task.kind)](desk)
            reports.send("answered", task=task_id, result=result)
        except BadStatement as error:
            reports.send("failed", task=task_id, error=described(error))
        except DatabaseError as error:
            log.warning("the database is away: %s", str(error).splitlines()[0])
            reports.send("cut_off", task=task_id)
        except Exception as error:
            reports.send("failed", task=task_id, error=described(error))


def _held(database: Database, asked: dict[str, Any]) -> TaskRecord | None:
    """The task, or None if this attempt does not hold it."""
    with database.reading() as session:
        task = tasks.get(session, asked["task"])
    held = None if task is None else (task.state, task.attempt, task.lease_token)
    return task if held == (TaskState.RUNNING, asked["attempt"], asked["lease_token"]) else None


def described(error: Exception) -> dict[str, Any]:
    """The stored form of the error that ended an answer."""
    if isinstance(error, TafdilError):
        return error.as_dict()
    if isinstance(error, MemoryError):
        return error_dict("oom_host", say("task_out_of_memory"))
    if is_disk_full(error):
        return error_dict("disk_full", say("worker_disk_full"))
    log.error("the task failed", exc_info=error)
    return error_dict("internal", say("task_broke", kind=type(error).__name__, problem=str(error)))


def main() -> None:
    name, descriptor, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    die_with_parent(parent, TASK_OOM_SCORE)
    # Process managers signal every process. The supervisor decides what becomes of the task.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logs.configure()
    settings = get_settings()
    reports = Reports(descriptor)
    inbox = listen(reports, settings.silence_s)
    reports.start_signs_of_life()
    module = importlib.import_module(name)
    if preload := getattr(module, "preload", None):
        preload()
    database = Database(settings.database)
    while True:
        asked = inbox.get()
        # It may have arrived before the last task was over, whose end is below.
        reports.be_busy(True)
        answer(asked, module.ANSWERS, reports, database, settings)
        reports.be_busy(False)
        # Idle processes hold no connections.
        database.dispose()


if __name__ == "__main__":
    main()
