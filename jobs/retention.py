"""Deletes expired data: checkpoints and jobs, after the number of days in the settings, and partial uploads of killed
processes."""

import logging
from dataclasses import replace

from jobs import uploads
from jobs.access import LOCAL
from jobs.artifact_service import ArtifactService
from jobs.artifacts import ArtifactKind
from jobs.database import Database
from jobs.errors import StateConflict
from jobs.queue import JobQueue
from jobs.repository import artifacts, kept_jobs
from jobs.settings import Settings

log = logging.getLogger(__name__)

_DAY_S = 86_400
# Maximum number of jobs that one call cleans up; the next call continues.
_AT_ONCE = 50


def apply(database: Database, queue: JobQueue, settings: Settings) -> int:
    """Deletes what is due. Returns the number of bytes freed."""
    service = ArtifactService(database, queue, settings)
    freed = uploads.sweep(settings)
    if settings.keep_jobs_days is not None:
        with database.reading() as session:
            due = kept_jobs.ended_before(session, settings.keep_jobs_days * _DAY_S, _AT_ONCE)
        for job_id, tenant in due:
            freed += _freed(service, tenant, job_id, whole=True)
    if settings.keep_checkpoints_days is not None:
        with database.reading() as session:
            age_s = settings.keep_checkpoints_days * _DAY_S
            due = artifacts.jobs_with(session, ArtifactKind.CHECKPOINT, age_s, _AT_ONCE)
        for job_id, tenant in due:
            freed += _freed(service, tenant, job_id, whole=False)
    return freed


def _freed(service: ArtifactService, tenant: str, job_id: str, *, whole: bool) -> int:
    own = service.for_caller(replace(LOCAL, tenant=tenant, key_id="retention"))
    try:
        removed = own.remove_job(job_id) if whole else own.remove(job_id, [ArtifactKind.CHECKPOINT])
    except StateConflict as error:
        # Another job starts from it; it is deleted once that one is over.
        log.info("kept: %s", error)
        return 0
    except Exception:
        # A job that cannot be deleted must not block the others.
        log.exception("job %s could not be deleted", job_id)
        return 0
    what = "the job" if whole else "its checkpoints"
    log.info("job %s: deleted %s, %d bytes, as old as the settings allow", job_id, what, removed.freed_bytes)
    return removed.freed_bytes
