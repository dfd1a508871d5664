"""Attempts: opened by a claim, and closed in the transaction of the state change that ends them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import case, func, insert, select, update
from sqlalchemy import delete as sql_delete
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import AttemptRecord, JobRecord, PastAttemptRecord
from jobs.states import Cause
from trainer_core.wording import Message


def of_job(session: Session, job_id: str) -> Sequence[AttemptRecord]:
    """All attempts of a job, oldest first."""
    query = select(AttemptRecord).where(AttemptRecord.job_id == job_id)
    return session.scalars(query.order_by(AttemptRecord.number)).all()


def opened(session: Session, job_id: str, number: int, *, worker: str, gpu_class: str | None, device: str | None) -> None:
    """Adds an attempt. Raises `IntegrityError` if another live one holds the device."""
    fields = {"worker": worker, "gpu_class": gpu_class, "device": device, "last_step": 0}
    session.execute(insert(AttemptRecord).values(job_id=job_id, number=number, started_at=db_now(), **fields))


def closed(session: Session, job_id: str, number: int, *, cause: Cause, now: float, reason: str | None) -> None:
    """Ends a live attempt. One that has already ended keeps its outcome, whatever happens to the job later."""
    session.execute(
        update(AttemptRecord)
        .where(AttemptRecord.job_id == job_id, AttemptRecord.number == number, AttemptRecord.ended_at.is_(None))
        .values(ended_at=now, outcome=cause.value, reason=reason, reason_said=as_stored(reason))
        .execution_options(synchronize_session=False)
    )


def as_stored(reason: str | None) -> dict[str, Any] | None:
    """The code and values of a reason; None if it is not a `Message`."""
    return reason.as_dict() if isinstance(reason, Message) else None


def outcome(session: Session, job_id: str, number: int) -> str | None:
    """The `Cause` that ended an attempt; None while it lives."""
    query = select(AttemptRecord.outcome).where(AttemptRecord.job_id == job_id, AttemptRecord.number == number)
    return session.scalar(query)


def set_first_step(session: Session, job_id: str, number: int, step: int) -> None:
    """Records the step at which the attempt began to train, unless it is already known."""
    session.execute(
        update(AttemptRecord)
        .where(AttemptRecord.job_id == job_id, AttemptRecord.number == number, AttemptRecord.first_step.is_(None))
        .values(first_step=step)
        .execution_options(synchronize_session=False)
    )


def set_last_step(session: Session, job_id: str, number: int, step: int, tokens: int) -> None:
    """Records the attempt's progress: steps, and tokens that went through the layers."""
    _update(session, job_id, number, {"last_step": step, "tokens": tokens})


def set_memory(session: Session, job_id: str, number: int, size_bytes: int) -> None:
    """Records the memory that the attempt uses: on its device, or on the machine if it runs on a CPU."""
    _update(session, job_id, number, {"memory_bytes": size_bytes})


def set_device_report(session: Session, job_id: str, number: int, report: dict[str, Any]) -> None:
    """Stores the device's state before and after. An attempt may add it even after it has lost the job."""
    _update(session, job_id, number, {"device_report": report})


def is_device_free(session: Session, device: str) -> bool:
    """Whether no live attempt holds the device."""
    query = select(func.count()).where(AttemptRecord.device == device, AttemptRecord.ended_at.is_(None))
    return session.scalar(query) == 0


def busy_seconds_left(session: Session, gpu_class: str | None) -> list[tuple[float, float | None]]:
    """For each running attempt on a worker that serves `gpu_class`: seconds since its start, and estimated seconds left."""
    query = (
        select(db_now() - AttemptRecord.started_at, JobRecord.seconds_left)
        .join(JobRecord, JobRecord.id == AttemptRecord.job_id)
        .where(AttemptRecord.ended_at.is_(None))
    )
    if gpu_class is not None:
        query = query.where(AttemptRecord.gpu_class == gpu_class)
    return [(row[0], row[1]) for row in session.execute(query)]


def delete(session: Session, job_id: str) -> None:
    """Deletes the attempts of a finished job, and keeps their totals."""
    a, steps = AttemptRecord, func.coalesce(AttemptRecord.last_step - AttemptRecord.first_step, 0)
    effect = case((a.outcome == Cause.FINISH.value, JobRecord.effect))
    counted = select(JobRecord.tenant, a.started_at, a.ended_at, a.outcome, effect, steps, a.tokens)
    ended = counted.join(JobRecord, JobRecord.id == a.job_id).where(a.job_id == job_id, a.ended_at.is_not(None))
    names = ["tenant", "started_at", "ended_at", "outcome", "effect", "steps", "tokens"]
    session.execute(insert(PastAttemptRecord).from_select(names, ended))
    session.execute(sql_delete(a).where(a.job_id == job_id).execution_options(synchronize_session=False))


def last_of_class(session: Session, gpu_class: str | None) -> AttemptRecord | None:
    """The newest attempt on a worker of the class, or on any worker for None."""
    query = select(AttemptRecord).order_by(AttemptRecord.started_at.desc()).limit(1)
    return session.scalar(query if gpu_class is None else query.where(AttemptRecord.gpu_class == gpu_class))


def last_durations_s(session: Session, limit: int = 20) -> list[float]:
    """Durations, in seconds, of the latest attempts that completed their jobs."""
    query = (
        select(AttemptRecord.ended_at - AttemptRecord.started_at)
        .where(AttemptRecord.outcome == Cause.FINISH.value)
        .order_by(AttemptRecord.started_at.desc())
        .limit(limit)
    )
    return [seconds for seconds in session.scalars(query) if seconds is not None]


def _update(session: Session, job_id: str, number: int, values: dict[str, Any]) -> None:
    session.execute(
        update(AttemptRecord)
        .where(AttemptRecord.job_id == job_id, AttemptRecord.number == number)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
