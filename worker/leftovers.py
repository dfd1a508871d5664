"""Removes what a killed task left on the disk and in the store."""

import shutil

from jobs.artifacts import MERGED_PREFIX, ArtifactKind
from jobs.database import Database
from jobs.places import run_dir
from jobs.records import TaskRecord
from jobs.repository import artifacts
from jobs.settings import Settings
from jobs.states import TaskKind
from jobs.storage import Storage


def merged_folder(task: TaskRecord) -> str:
    """The directory that one attempt of a merge, and no other, writes to; below the job's."""
    return f"{MERGED_PREFIX}{task.id}-{task.attempt}"


def staging_prefix(task: TaskRecord) -> str:
    """How the names of a push's temporary directories begin."""
    return f".push-{task.id}-"


def clear(database: Database, settings: Settings, task: TaskRecord) -> None:
    """Removes the files of a killed attempt, unless they have become the job's. Raises `DatabaseError`."""
    if task.job_id is None or task.kind not in (TaskKind.MERGE, TaskKind.PUSH):
        return
    root, name = run_dir(settings, task.job_id), merged_folder(task)
    with database.reading() as session:
        files = artifacts.of_job(session, task.job_id)
        is_listed = any(file.kind == ArtifactKind.MERGED and file.name.startswith(f"{name}/") for file in files)
    if not is_listed:
        written = [path.relative_to(root).as_posix() for path in (root / name).rglob("*") if path.is_file()]
        if written:
            Storage(settings).delete(task.job_id, written)
        for folder in (root / name, root / f".{name}", *root.glob(f"{staging_prefix(task)}*")):
            shutil.rmtree(folder, ignore_errors=True)
