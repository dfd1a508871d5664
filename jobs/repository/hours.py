"""Training hours: the running time of attempts, which counts while they run."""

from typing import Any

from sqlalchemy import ColumnElement, func, select, union_all
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import AttemptRecord, JobRecord, PastAttemptRecord
from jobs.states import JobState

_MONTH_S = 30 * 24 * 3600


def of_tenant_s(session: Session, tenant: str) -> float:
    """Total seconds of a tenant's attempts that began in the last 30 days, including those of deleted jobs."""
    each = _recent(tenant).subquery().c
    return session.scalar(select(func.sum(_seconds(each.started_at, each.ended_at)))) or 0.0


def tenants_over(session: Session, most_s: float) -> set[str]:
    """The tenants whose attempts of the last 30 days took `most_s` seconds or more in total."""
    each = _recent().subquery().c
    total = func.sum(_seconds(each.started_at, each.ended_at))
    return set(session.scalars(select(each.tenant).group_by(each.tenant).having(total >= most_s)))


def of_job_s(session: Session, job_id: str) -> float:
    """Total seconds of a job's attempts."""
    total = func.sum(_seconds(AttemptRecord.started_at, AttemptRecord.ended_at))
    return session.scalar(select(total).where(AttemptRecord.job_id == job_id)) or 0.0


def of_running(session: Session) -> list[tuple[JobRecord, float]]:
    """The running jobs that nothing was asked of yet, and the total seconds of each one's attempts."""
    found = session.scalars(select(JobRecord).where(JobRecord.state == JobState.RUNNING, JobRecord.requested.is_(None)))
    return [(job, of_job_s(session, job.id)) for job in found]


def _recent(tenant: str | None = None) -> Any:
    began = db_now() - _MONTH_S
    kept = (
        select(JobRecord.tenant, AttemptRecord.started_at, AttemptRecord.ended_at)
        .join(JobRecord, JobRecord.id == AttemptRecord.job_id)
        .where(AttemptRecord.started_at > began)
    )
    past = select(PastAttemptRecord.tenant, PastAttemptRecord.started_at, PastAttemptRecord.ended_at).where(
        PastAttemptRecord.started_at > began
    )
    if tenant is not None:
        kept, past = kept.where(JobRecord.tenant == tenant), past.where(PastAttemptRecord.tenant == tenant)
    return union_all(kept, past)


def _seconds(started_at: Any, ended_at: Any) -> ColumnElement[float]:
    return func.coalesce(ended_at, db_now()) - started_at
