"""Jobs as a tenant has them: counted, found by what they use, noted and deleted once they are over."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import delete as sql_delete
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from jobs.artifacts import ArtifactKind
from jobs.database import db_now
from jobs.records import ArtifactRecord, EventRecord, JobRecord, MetricRecord, TaskRecord
from jobs.repository import attempts
from jobs.spec import dataset_ids
from jobs.states import FINAL, JobState

_OPEN = [state for state in JobState if not state.is_final]


def count_open(session: Session, tenant: str) -> int:
    """How many jobs of the tenant are not over."""
    query = select(func.count()).select_from(JobRecord).where(JobRecord.tenant == tenant, JobRecord.state.in_(_OPEN))
    return session.scalar(query) or 0


def open_user_of(session: Session, tenant: str, dataset_id: str) -> str | None:
    """A job of the tenant's that is not over and names the dataset, for training or for validation."""
    query = select(JobRecord.id, JobRecord.resolved_spec).where(JobRecord.tenant == tenant, JobRecord.state.in_(_OPEN))
    return next((row.id for row in session.execute(query) if dataset_id in dataset_ids(row.resolved_spec)), None)


def open_starter_from(session: Session, tenant: str, job_id: str) -> str | None:
    """A job of the tenant's that is not over and starts from a checkpoint of the job."""
    still = JobRecord.tenant == tenant, JobRecord.state.in_(_OPEN)
    return session.scalar(select(JobRecord.id).where(*still, JobRecord.start_from == job_id).limit(1))


def ended_before(session: Session, age_s: float, limit: int) -> list[tuple[str, str]]:
    """Ids and tenants of jobs that ended so long ago, the oldest first."""
    query = select(JobRecord.id, JobRecord.tenant).where(JobRecord.finished_at < db_now() - age_s)
    return [(row.id, row.tenant) for row in session.execute(query.order_by(JobRecord.finished_at).limit(limit))]


def lock(session: Session, job_id: str) -> None:
    """Before files of a job are deleted: waits for jobs that are being stored to start from it, and lets no further one."""
    session.execute(select(JobRecord.number).where(JobRecord.id == job_id).with_for_update())


def has_checkpoint(session: Session, tenant: str, job_id: str) -> bool:
    """Whether a job of the tenant's has one, which nobody can delete before the end of this transaction."""
    query = select(JobRecord.checkpoint_step).where(JobRecord.id == job_id, JobRecord.tenant == tenant)
    return bool(session.scalar(query.with_for_update(read=True)))


def forget(session: Session, job_id: str, kinds: Collection[ArtifactKind]) -> None:
    """Notes that a job's model or its checkpoints are about to be deleted, so that nothing is started with them."""
    gone: dict[str, Any] = {"artifact_path": None} if ArtifactKind.MODEL in kinds else {}
    gone |= {"checkpoint_step": 0} if ArtifactKind.CHECKPOINT in kinds else {}
    if gone:
        session.execute(update(JobRecord).where(JobRecord.id == job_id).values(gone))


def delete(session: Session, job_id: str) -> None:
    """Deletes a job that is over, with all that refers to it; its attempts still count."""
    lock(session, job_id)
    attempts.delete(session, job_id)
    for table in (EventRecord, MetricRecord, TaskRecord, ArtifactRecord):
        session.execute(sql_delete(table).where(table.job_id == job_id).execution_options(synchronize_session=False))
    session.execute(sql_delete(JobRecord).where(JobRecord.id == job_id, JobRecord.state.in_(FINAL)))


def note(session: Session, job_id: str, event: str, data: dict[str, Any]) -> None:
    """Adds an event to a job that is over."""
    statement = update(JobRecord).where(JobRecord.id == job_id).values(event_count=JobRecord.event_count + 1)
    row = session.execute(
        statement.returning(JobRecord.event_count, db_now().label("now")).execution_options(synchronize_session=False)
    ).one()
    session.add(EventRecord(job_id=job_id, sequence=row.event_count, type=event, data=data, created_at=row.now))


def last_speeds(session: Session, tenant: str, method: str, model_name: str, limit: int) -> list[dict[str, Any]]:
    """What the tenant's last trainings of a model by a method tell of their speed, newest first."""
    query = select(JobRecord.metadata_).where(
        JobRecord.tenant == tenant,
        JobRecord.method == method,
        JobRecord.state == JobState.SUCCEEDED,
        JobRecord.model_name == model_name,
    )
    found = session.scalars(query.order_by(JobRecord.number.desc()).limit(limit))
    return [metadata["speed"] for metadata in found if metadata and metadata.get("speed")]
