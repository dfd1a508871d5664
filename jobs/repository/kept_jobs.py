"""Queries over a tenant's jobs: count them, find them by what they use, annotate and delete finished ones."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy import delete as sql_delete
from sqlalchemy.orm import Session

from jobs.artifacts import ArtifactKind
from jobs.database import db_now
from jobs.records import ArtifactRecord, EventRecord, JobRecord, MetricRecord, TaskRecord
from jobs.repository import attempts
from jobs.spec import dataset_ids
from jobs.states import FINAL, JobState

_OPEN = [state for state in JobState if not state.is_final]


def count_open(session: Session, tenant: str) -> int:
    """Number of the tenant's unfinished jobs."""
    query = select(func.count()).select_from(JobRecord).where(JobRecord.tenant == tenant, JobRecord.state.in_(_OPEN))
    return session.scalar(query) or 0


def open_user_of(session: Session, tenant: str, dataset_id: str) -> str | None:
    """One of the tenant's unfinished jobs that names the dataset, for training or validation."""
    query = select(JobRecord.id, JobRecord.resolved_spec).where(JobRecord.tenant == tenant, JobRecord.state.in_(_OPEN))
    return next((row.id for row in session.execute(query) if dataset_id in dataset_ids(row.resolved_spec)), None)


def open_starter_from(session: Session, tenant: str, job_id: str) -> str | None:
    """One of the tenant's unfinished jobs that starts from a checkpoint of the job."""
    still = JobRecord.tenant == tenant, JobRecord.state.in_(_OPEN)
    return session.scalar(select(JobRecord.id).where(*still, JobRecord.start_from == job_id).limit(1))


def ended_before(session: Session, age_s: float, limit: int) -> list[tuple[str, str]]:
    """Ids and tenants of jobs that ended at least `age_s` seconds ago, oldest first."""
    query = select(JobRecord.id, JobRecord.tenant).where(JobRecord.finished_at < db_now() - age_s)
    return [(row.id, row.tenant) for row in session.execute(query.order_by(JobRecord.finished_at).limit(limit))]


def lock(session: Session, job_id: str) -> None:
    """Call before deleting a job's files: waits for jobs being stored that start from it, and blocks new ones."""
    session.execute(select(JobRecord.number).where(JobRecord.id == job_id).with_for_update())


def held(session: Session, job_id: str) -> JobRecord | None:
    """A job whose files a running task is about to read. Locks it against their deletion until the transaction ends."""
    return session.scalar(select(JobRecord).where(JobRecord.id == job_id).with_for_update(read=True))


def has_checkpoint(session: Session, tenant: str, job_id: str) -> bool:
    """Whether one of the tenant's jobs has a checkpoint. Locks it against deletion until the transaction ends."""
    query = select(JobRecord.checkpoint_step).where(JobRecord.id == job_id, JobRecord.tenant == tenant)
    return bool(session.scalar(query.with_for_update(read=True)))


def forget(session: Session, job_id: str, kinds: Collection[ArtifactKind]) -> None:
    """Records that a job's model or checkpoints are about to be deleted, so that nothing new starts from them."""
    gone: dict[str, Any] = {"artifact_path": None} if ArtifactKind.MODEL in kinds else {}
    gone |= {"checkpoint_step": 0} if ArtifactKind.CHECKPOINT in kinds else {}
    if gone:
        session.execute(update(JobRecord).where(JobRecord.id == job_id).values(gone))


def delete(session: Session, job_id: str) -> None:
    """Deletes a finished job and everything that refers to it. Its attempts still count in totals."""
    lock(session, job_id)
    attempts.delete(session, job_id)
    for table in (EventRecord, MetricRecord, TaskRecord, ArtifactRecord):
        session.execute(sql_delete(table).where(table.job_id == job_id).execution_options(synchronize_session=False))
    session.execute(sql_delete(JobRecord).where(JobRecord.id == job_id, JobRecord.state.in_(FINAL)))


def note(session: Session, job_id: str, event: str, data: dict[str, Any]) -> None:
    """Adds an event to a finished job."""
    statement = update(JobRecord).where(JobRecord.id == job_id).values(event_count=JobRecord.event_count + 1)
    row = session.execute(
        statement.returning(JobRecord.event_count, db_now().label("now")).execution_options(synchronize_session=False)
    ).one()
    session.add(EventRecord(job_id=job_id, sequence=row.event_count, type=event, data=data, created_at=row.now))


def last_speeds(session: Session, tenant: str, method: str, model_name: str, limit: int) -> list[dict[str, Any]]:
    """Speed reports of the tenant's latest runs of a model and method, newest first."""
    query = select(JobRecord.metadata_).where(*_runs_of(tenant, model_name), JobRecord.method == method)
    found = session.scalars(query.order_by(JobRecord.number.desc()).limit(limit))
    return [metadata["speed"] for metadata in found if metadata and metadata.get("speed")]


def last_starts(session: Session, tenant: str, model_name: str, limit: int) -> list[dict[str, Any]]:
    """The events `first_step` of the tenant's latest runs of a model, each with the seconds that its start took."""
    runs = select(JobRecord.id).where(*_runs_of(tenant, model_name)).order_by(JobRecord.number.desc()).limit(limit)
    ids = list(session.scalars(runs))
    query = select(EventRecord.data).where(EventRecord.job_id.in_(ids), EventRecord.type == "first_step")
    return list(session.scalars(query))


def _runs_of(tenant: str, model_name: str) -> tuple[ColumnElement[bool], ...]:
    succeeded = JobRecord.state == JobState.SUCCEEDED
    return (JobRecord.tenant == tenant, succeeded, JobRecord.model_name == model_name)
