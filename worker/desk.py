"""What an answer of a task is given: the task, the database, the settings, and a way to report partial answers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.artifacts import ArtifactKind
from jobs.database import Database
from jobs.errors import NotFound
from jobs.records import JobRecord, TaskRecord
from jobs.repository import artifacts, kept_jobs
from jobs.settings import Settings
from jobs.storage import Storage
from trainer_core.errors import ModelNotFound
from trainer_core.wording import say


@dataclass(frozen=True)
class Desk:
    """A running task, with what its answer needs.

    Attributes:
        tell: reports the partial answer, for clients that stream it.
    """

    task: TaskRecord
    database: Database
    settings: Settings
    tell: Callable[[dict[str, Any]], None] = lambda _: None


Answer = Callable[[Desk], dict[str, Any]]
"""Answers a task of one kind. A `TafdilError` that it raises becomes the task's error."""


def trained_job(desk: Desk) -> JobRecord:
    """The job of a task that reads its model. Raises `ModelNotFound`.

    Waits for a deletion of the job's files. A later one finds this task running, and is refused.
    """
    with desk.database.reading() as session:
        job = kept_jobs.held(session, str(desk.task.job_id))
    if job is None or job.artifact_path is None:
        raise ModelNotFound(say("job_not_trained", id=desk.task.job_id))
    return job


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
