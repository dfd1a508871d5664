"""Reads events. `jobs.repository.jobs` writes them together with the changes they describe."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.records import EventRecord, JobRecord


def after(
    session: Session, job_id: str, sequence: int, limit: int = 500, *, without: Sequence[str] = ()
) -> Sequence[EventRecord]:
    """A job's events after a sequence number, in order, except those of the types in `without`."""
    query = select(EventRecord).where(EventRecord.job_id == job_id, EventRecord.sequence > sequence)
    if without:
        query = query.where(EventRecord.type.not_in(without))
    return session.scalars(query.order_by(EventRecord.sequence).limit(limit)).all()


def queued_at(session: Session, job: JobRecord) -> float:
    """When a job that was just claimed entered the queue: the time of the event before its claim."""
    query = select(EventRecord.created_at).where(EventRecord.job_id == job.id, EventRecord.sequence == job.event_count - 1)
    return session.scalar(query) or job.created_at
