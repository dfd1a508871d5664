"""Jobs. Each state change is one compare-and-set, in `_transition`, together with its event."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import EventRecord, JobRecord
from jobs.states import TRANSITIONS, Cause, JobState
from trainer_core.errors import error_dict

_CLAIM_TRIES = 8


@dataclass(frozen=True)
class Fence:
    """Who may write: one attempt of a job, by the token of its lease. A stale attempt matches no row."""

    job_id: str
    attempt: int
    lease_token: str

    def condition(self) -> ColumnElement[bool]:
        return and_(
            JobRecord.id == self.job_id,
            JobRecord.attempt == self.attempt,
            JobRecord.lease_token == self.lease_token,
            JobRecord.state == JobState.RUNNING,
        )


def insert(session: Session, fields: dict[str, Any]) -> str:
    """A new queued job with its first event; returns its id."""
    job_id = uuid.uuid4().hex
    now = session.scalar(select(db_now()))
    session.add(
        JobRecord(id=job_id, state=JobState.QUEUED, created_at=now, published_at=now, event_count=1, warnings=[], **fields)
    )
    session.flush()
    session.add(EventRecord(job_id=job_id, sequence=1, type="queued", data={}, created_at=now))
    return job_id


def get(session: Session, job_id: str) -> JobRecord | None:
    return session.scalar(select(JobRecord).where(JobRecord.id == job_id))


def page(
    session: Session, limit: int, before: int | None = None, state: str | None = None, method: str | None = None
) -> Sequence[JobRecord]:
    """Jobs, newest first, below the number `before`."""
    query = select(JobRecord).order_by(JobRecord.number.desc()).limit(limit)
    if before is not None:
        query = query.where(JobRecord.number < before)
    if state:
        query = query.where(JobRecord.state == state)
    if method:
        query = query.where(JobRecord.method == method)
    return session.scalars(query).all()


def queue_positions(session: Session, jobs: Sequence[JobRecord]) -> dict[str, int]:
    """The place of each queued job among `jobs` in the order of claims, from 1."""
    queued = [job for job in jobs if job.state == JobState.QUEUED]
    if not queued:
        return {}
    ranked = (
        select(JobRecord.id, func.row_number().over(order_by=JobRecord.number).label("place"))
        .where(JobRecord.state == JobState.QUEUED)
        .subquery()
    )
    rows = session.execute(select(ranked.c.id, ranked.c.place).where(ranked.c.id.in_([job.id for job in queued])))
    return {row.id: row.place for row in rows}


def _transition(
    session: Session,
    cause: Cause,
    where: ColumnElement[bool],
    values: dict[str, Any],
    data: dict[str, Any] | None = None,
) -> str | None:
    """The one way to change a state: compare-and-set with its event. Returns the job's id, or None if nothing matched."""
    sources, target = TRANSITIONS[cause]
    statement = (
        update(JobRecord)
        .where(where, JobRecord.state.in_(sources))
        .values(state=target, event_count=JobRecord.event_count + 1, **values)
        .returning(JobRecord.id, JobRecord.event_count, JobRecord.attempt)
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        return None
    now = session.scalar(select(db_now()))
    event = {"attempt": row.attempt, **(data or {})}
    session.add(EventRecord(job_id=row.id, sequence=row.event_count, type=cause.value, data=event, created_at=now))
    session.flush()
    session.expire_all()
    return row.id


def claim_next(session: Session, worker: str, lease_s: float) -> JobRecord | None:
    """Takes the best queued job (the oldest), with a new attempt and a lease of `lease_s` seconds."""
    candidates = session.scalars(
        select(JobRecord.id).where(JobRecord.state == JobState.QUEUED).order_by(JobRecord.number).limit(_CLAIM_TRIES)
    ).all()
    for job_id in candidates:
        values = {
            "attempt": JobRecord.attempt + 1,
            "lease_token": uuid.uuid4().hex,
            "lease_expires_at": db_now() + lease_s,
            "worker": worker,
            "phase": "preparing",
            "started_at": func.coalesce(JobRecord.started_at, db_now()),
            "seconds_left": None,
        }
        if _transition(session, Cause.CLAIM, JobRecord.id == job_id, values, {"worker": worker}):
            return get(session, job_id)
    return None


def renew(session: Session, fence: Fence, lease_s: float) -> bool:
    """Prolongs the lease. False: the attempt is not the job's any more."""
    return _write(session, fence, {"lease_expires_at": db_now() + lease_s})


def is_cancel_requested(session: Session, fence: Fence) -> bool | None:
    """Whether the attempt should stop; None: it is not the job's attempt any more."""
    row = session.execute(select(JobRecord.cancel_requested_at).where(fence.condition())).one_or_none()
    return None if row is None else row.cancel_requested_at is not None


def record(session: Session, fence: Fence, event: str, data: dict[str, Any], values: dict[str, Any] | None = None) -> bool:
    """Writes columns and an event of a running attempt, in one. False: the attempt is stale and nothing was written."""
    statement = (
        update(JobRecord)
        .where(fence.condition())
        .values(event_count=JobRecord.event_count + 1, **(values or {}))
        .returning(JobRecord.event_count)
        .execution_options(synchronize_session=False)
    )
    sequence = session.scalar(statement)
    if sequence is None:
        return False
    now = session.scalar(select(db_now()))
    full = {"attempt": fence.attempt, **data}
    session.add(EventRecord(job_id=fence.job_id, sequence=sequence, type=event, data=full, created_at=now))
    return True


def set_progress(session: Session, fence: Fence, step: int, total_steps: int, seconds_left: float | None) -> bool:
    """Steps done, without an event. A step beyond all earlier attempts clears the count of lost workers."""
    session.execute(
        update(JobRecord)
        .where(fence.condition(), JobRecord.progress_step < step)
        .values(progress_step=step, losses=0)
        .execution_options(synchronize_session=False)
    )
    return _write(session, fence, {"step": step, "total_steps": total_steps, "seconds_left": seconds_left})


def add_warning(session: Session, fence: Fence, warning: dict[str, Any]) -> bool:
    """Adds a warning to the job, once, with its event."""
    job = session.scalar(select(JobRecord).where(fence.condition()))
    if job is None:
        return False
    if warning in job.warnings:
        return True
    return record(session, fence, "warning", warning, {"warnings": [*job.warnings, warning]})


def finish(
    session: Session,
    fence: Fence,
    cause: Cause,
    values: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> bool:
    """Ends an attempt: success, failure, cancel or preemption."""
    ending: dict[str, Any] = {"lease_token": None, "lease_expires_at": None, "phase": None, "seconds_left": None}
    if TRANSITIONS[cause][1].is_final:
        ending["finished_at"] = db_now()
    return _transition(session, cause, fence.condition(), {**ending, **(values or {})}, data) is not None


def cancel_queued(session: Session, job_id: str) -> bool:
    """Cancels a job that no worker has."""
    where = and_(JobRecord.id == job_id, JobRecord.state == JobState.QUEUED)
    values = {
        "finished_at": db_now(),
        "cancel_requested_at": db_now(),
        "error": error_dict("cancelled", "cancelled while queued"),
    }
    return _transition(session, Cause.CANCEL, where, values) is not None


def request_cancel(session: Session, job_id: str) -> bool:
    """Asks the worker of a running job to stop. False: it does not run, or was asked before."""
    statement = (
        update(JobRecord)
        .where(JobRecord.id == job_id, JobRecord.state == JobState.RUNNING, JobRecord.cancel_requested_at.is_(None))
        .values(cancel_requested_at=db_now(), event_count=JobRecord.event_count + 1)
        .returning(JobRecord.event_count)
        .execution_options(synchronize_session=False)
    )
    sequence = session.scalar(statement)
    if sequence is None:
        return False
    now = session.scalar(select(db_now()))
    session.add(EventRecord(job_id=job_id, sequence=sequence, type="cancel_requested", data={}, created_at=now))
    return True


def reap(session: Session, max_losses: int) -> list[str]:
    """Ends every attempt whose lease ran out: back to the queue, or failed or cancelled. Returns the jobs' ids."""
    expired = and_(JobRecord.state == JobState.RUNNING, JobRecord.lease_expires_at < db_now())
    found = session.scalars(select(JobRecord).where(expired)).all()
    return [
        job.id
        for job in found
        if _lose(session, job, and_(JobRecord.id == job.id, JobRecord.attempt == job.attempt, expired), max_losses)
    ]


def lose(session: Session, fence: Fence, max_losses: int) -> bool:
    """Ends an attempt whose training process died. False: the attempt was not the job's any more."""
    job = session.scalar(select(JobRecord).where(fence.condition()))
    return job is not None and _lose(session, job, fence.condition(), max_losses)


def _lose(session: Session, job: JobRecord, where: ColumnElement[bool], max_losses: int) -> bool:
    values: dict[str, Any] = {
        "lease_token": None,
        "lease_expires_at": None,
        "phase": None,
        "seconds_left": None,
        "losses": JobRecord.losses + 1,
    }
    losses, worker = job.losses + 1, job.worker
    if job.cancel_requested_at is not None:
        cause = Cause.CANCEL
        values |= {"finished_at": db_now(), "error": error_dict("cancelled", "cancelled; its worker was lost")}
    elif losses >= max_losses:
        cause = Cause.FAIL
        message = f"the worker was lost {losses} times without progress beyond step {job.progress_step}"
        values |= {"finished_at": db_now(), "error": error_dict("poisoned", message)}
    else:
        cause = Cause.LOSE
        values |= {"published_at": None}
    return _transition(session, cause, where, values, {"worker": worker}) is not None


def unclaimed(session: Session, older_than_s: float, limit: int = 100) -> Sequence[str]:
    """Queued jobs never published, or published so long ago that the message is taken for lost."""
    late = or_(JobRecord.published_at.is_(None), JobRecord.published_at < db_now() - older_than_s)
    query = select(JobRecord.id).where(JobRecord.state == JobState.QUEUED, late)
    return session.scalars(query.order_by(JobRecord.number).limit(limit)).all()


def mark_published(session: Session, job_id: str) -> None:
    session.execute(update(JobRecord).where(JobRecord.id == job_id).values(published_at=db_now()))


def oldest_expired_lease_s(session: Session) -> float:
    """For how long the most overdue lease has run out, in seconds; 0 when none has."""
    overdue = session.scalar(
        select(func.max(db_now() - JobRecord.lease_expires_at)).where(JobRecord.state == JobState.RUNNING)
    )
    return max(0.0, overdue or 0.0)


def _write(session: Session, fence: Fence, values: dict[str, Any]) -> bool:
    statement = update(JobRecord).where(fence.condition()).values(**values).returning(JobRecord.number)
    return session.scalar(statement.execution_options(synchronize_session=False)) is not None
