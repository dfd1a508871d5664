"""Runs tasks: claims the oldest, renews its lease while working, and stores the answer or the error."""

import logging
import os
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery

from jobs import logs, tracing
from jobs.artifacts import ArtifactKind
from jobs.database import Database
from jobs.errors import DatabaseError, NotFound
from jobs.places import without_places
from jobs.queue import CeleryQueue
from jobs.records import JobRecord, TaskRecord
from jobs.repository import artifacts, tasks
from jobs.settings import Settings, get_settings
from jobs.states import TaskKind
from jobs.storage import Storage
from trainer_core.errors import ModelNotFound, TafdilError, error_dict
from trainer_core.wording import say

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Desk:
    """A running task, with what its answer needs."""

    task: TaskRecord
    database: Database
    queue: CeleryQueue
    settings: Settings

    def tell(self, partial: dict[str, Any]) -> None:
        """Stores the partial answer, for clients that stream it."""
        try:
            with self.database.transaction() as session:
                tasks.tell(session, self.task, partial)
        except DatabaseError as error:
            log.warning("the database is away: %s", str(error).splitlines()[0])
        self.queue.nudge(self.task.id)


def leave_gpus_alone(**_: Any) -> None:
    """For `worker_init`: hides GPUs from this worker and its pool, leaving them to training."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def stay_offline(**_: Any) -> None:
    """For `worker_init`: stops libraries from contacting the hub unless it is allowed."""
    if not get_settings().allow_hub:
        os.environ["HF_HUB_OFFLINE"] = "1"


def run_next(app: Celery, kinds: Sequence[TaskKind], answer: Callable[[Desk], dict[str, Any]]) -> None:
    """Answers the oldest waiting task of the given kinds, if any. An exception from `answer` becomes its error."""
    settings = get_settings()
    database, queue = Database(settings.database), CeleryQueue(settings)
    try:
        with database.transaction() as session:
            task = tasks.claim_next(session, kinds, settings.lease_s)
        if task is None:
            log.info("woken, but no task waits")
            return
        result, error = None, None
        traced = {"tafdil.task.id": task.id, "tafdil.job.id": task.job_id, "tafdil.attempt": task.attempt}
        if task.attempt == 1:
            tracing.record("queued", traced, parent=task.traceparent, began_at=task.created_at)
        with (
            logs.about(task=task.id, job=task.job_id or ""),
            tracing.span(task.kind, traced, parent=task.traceparent),
            _kept(database, task, settings),
        ):
            try:
                result = answer(Desk(task, database, queue, settings))
            except TafdilError as known:
                error = known.as_dict()
            except Exception as unknown:
                log.exception("task %s (%s) failed", task.id, task.kind)
                error = error_dict("internal", say("task_broke", kind=type(unknown).__name__, problem=str(unknown)))
            if error:
                tracing.fail(error["code"])
        shown = without_places(settings, error) if error else None
        with database.transaction() as session:
            tasks.finish(session, task, result, shown)
        queue.nudge(task.id)
    finally:
        database.dispose()


def model_directory(desk: Desk, job: JobRecord) -> Path:
    """The local directory of a job's trained model, fetched from the store if needed. Raises `ModelNotFound`."""
    directory = desk.settings.runs_dir.resolve() / str(job.artifact_path)
    with desk.database.reading() as session:
        files = [file for file in artifacts.of_job(session, job.id) if file.kind == ArtifactKind.MODEL]
    try:
        Storage(desk.settings).fetch(job.id, files)
    except NotFound as error:
        raise ModelNotFound(say("model_gone_because", id=job.id, problem=error.message)) from error
    if not directory.is_dir():
        raise ModelNotFound(say("model_gone", id=job.id))
    return directory


@contextmanager
def _kept(database: Database, task: TaskRecord, settings: Settings) -> Generator[None]:
    """Renews the lease in the background, because an answer may take minutes on a CPU."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(settings.heartbeat_s):
            try:
                with database.transaction() as session:
                    tasks.renew(session, task, settings.lease_s)
            except DatabaseError as error:
                log.warning("the database is away: %s", str(error).splitlines()[0])

    keeper = threading.Thread(target=renew, daemon=True, name="lease")
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
