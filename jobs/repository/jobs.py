"""Jobs. Each state change is one compare-and-set, in `_transition`, together with its event and its attempt's row."""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, not_, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import EventRecord, JobRecord
from jobs.repository import attempts
from jobs.states import REPLACES, TRANSITIONS, Cause, JobState, PauseReason, Request
from trainer_core.errors import error_dict
from trainer_core.wording import say

# Job columns to reset when an attempt is over.
_RELEASED: dict[str, Any] = {
    "lease_token": None,
    "lease_expires_at": None,
    "phase": None,
    "seconds_left": None,
    "requested": None,
}


@dataclass(frozen=True)
class Fence:
    """The right to write: one attempt of a job and the token of its lease. A stale attempt matches no row."""

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


def insert(session: Session, fields: dict[str, Any], data: dict[str, Any] | None = None) -> str:
    """Adds a queued job with its first event and returns its id. Raises `IntegrityError` if its idempotency key exists."""
    job_id = uuid.uuid4().hex
    now = session.scalar(select(db_now()))
    turn = _next_turn(session, fields["tenant"], fields.get("priority", 0), fields.get("gpu_class"))
    times = {"created_at": now, "published_at": now}
    session.add(JobRecord(id=job_id, state=JobState.QUEUED, turn=turn, event_count=1, warnings=[], **times, **fields))
    session.flush()
    session.add(EventRecord(job_id=job_id, sequence=1, type="queued", data=data or {}, created_at=now))
    return job_id


def _next_turn(session: Session, tenant: str, priority: int, gpu_class: str | None) -> int:
    """The turn after the tenant's last one, or the current turn of the queue of that priority and class if that is later.

    One tenant's jobs keep their order, and another tenant's first job precedes everyone's second waiting job. Jobs that
    were cancelled before they began took no turn, and requeued jobs do not define the current turn.
    """
    of_priority = JobRecord.priority == priority
    never_began = and_(JobRecord.state == JobState.CANCELLED, JobRecord.attempt == 0)
    mine = and_(JobRecord.tenant == tenant, of_priority, not_(never_began))
    own = session.scalar(select(JobRecord.turn).where(mine).order_by(JobRecord.turn.desc()).limit(1)) or 0
    waiting = and_(JobRecord.state == JobState.QUEUED, of_priority, JobRecord.attempt == 0)
    of_class = JobRecord.gpu_class.is_(None) if gpu_class is None else JobRecord.gpu_class == gpu_class
    now = session.scalar(select(JobRecord.turn).where(waiting, of_class).order_by(JobRecord.turn).limit(1))
    if now is None:
        now = session.scalar(select(func.max(JobRecord.turn)).where(of_priority)) or 0
    return max(own + 1, now)


def get(session: Session, job_id: str) -> JobRecord | None:
    """A job of any tenant, for workers."""
    return session.scalar(select(JobRecord).where(JobRecord.id == job_id))


def owned(session: Session, tenant: str, job_id: str) -> JobRecord | None:
    """One of the tenant's jobs."""
    return session.scalar(select(JobRecord).where(JobRecord.id == job_id, JobRecord.tenant == tenant))


def by_key(session: Session, tenant: str, idempotency_key: str) -> JobRecord | None:
    query = select(JobRecord).where(JobRecord.tenant == tenant, JobRecord.idempotency_key == idempotency_key)
    return session.scalar(query)


def page(
    session: Session,
    tenant: str,
    limit: int,
    before: int | None = None,
    *,
    state: str | None = None,
    method: str | None = None,
) -> Sequence[JobRecord]:
    """A tenant's jobs, newest first, numbered below `before`."""
    query = select(JobRecord).where(JobRecord.tenant == tenant).order_by(JobRecord.number.desc()).limit(limit)
    if before is not None:
        query = query.where(JobRecord.number < before)
    if state:
        query = query.where(JobRecord.state == state)
    if method:
        query = query.where(JobRecord.method == method)
    return session.scalars(query).all()


def queue_positions(session: Session, jobs: Sequence[JobRecord]) -> dict[str | None, dict[str, int]]:
    """The position in the queue of each queued job among `jobs`, from 1, by class and id.

    A position counts the jobs that a worker of the job's class would claim: those of that class and those of none.
    """
    positions: dict[str | None, dict[str, int]] = {}
    queued = [job for job in jobs if job.state == JobState.QUEUED]
    # One pass over the queue per class, regardless of how many of its jobs are requested.
    for gpu_class in {job.gpu_class for job in queued}:
        served = _is_served_by(gpu_class)
        place = func.row_number().over(order_by=(JobRecord.priority.desc(), JobRecord.turn, JobRecord.number)).label("place")
        # Reads one index only: the job rows are scattered over the table.
        queue = select(JobRecord.number, place).where(JobRecord.state == JobState.QUEUED, served).subquery()
        ids = {job.number: job.id for job in queued if job.gpu_class == gpu_class}
        rows = session.execute(select(queue.c.number, queue.c.place).where(queue.c.number.in_(ids)))
        # Jobs claimed meanwhile have no position.
        if places := {ids[row[0]]: row[1] for row in rows}:
            positions[gpu_class] = places
    return positions


def pausing(session: Session, jobs: Sequence[JobRecord]) -> set[str]:
    """The ids of jobs that may not be claimed yet."""
    later = {job.id: job.not_before for job in jobs if job.not_before is not None}
    now = session.scalar(select(db_now())) if later else 0.0
    return {job_id for job_id, not_before in later.items() if not_before > (now or 0.0)}


def _transition(
    session: Session,
    cause: Cause,
    where: ColumnElement[bool],
    values: dict[str, Any],
    data: dict[str, Any] | None = None,
    *,
    reason: str | None = None,
) -> str | None:
    """The only way to change a state: a compare-and-set, with its event. Returns the job's id, or None if nothing matched.

    A change that ends an attempt also closes the attempt's row, with `reason`.
    """
    sources, target = TRANSITIONS[cause]
    if target.is_final:
        values = {"finished_at": db_now(), **values}
    statement = (
        update(JobRecord)
        .where(where, JobRecord.state.in_(sources))
        .values(state=target, event_count=JobRecord.event_count + 1, **values)
        .returning(JobRecord.id, JobRecord.event_count, JobRecord.attempt, db_now().label("now"))
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        return None
    event = {"attempt": row.attempt, **(data or {})}
    session.add(EventRecord(job_id=row.id, sequence=row.event_count, type=cause.value, data=event, created_at=row.now))
    session.flush()
    if row.attempt and target is not JobState.RUNNING:
        attempts.closed(session, row.id, row.attempt, cause=cause, now=row.now, reason=reason)
    session.expire_all()
    return row.id


def claim_next(
    session: Session,
    worker: str,
    lease_s: float,
    device: str | None = None,
    gpu_class: str | None = None,
    *,
    without: Collection[str] = (),
) -> JobRecord | None:
    """Claims the next queued job, with a new attempt and a lease of `lease_s` seconds.

    The highest priority comes first. Among equals, tenants take turns, and each tenant's oldest job comes first.

    Args:
        device: the GPU that the attempt will hold. Returns None while another live attempt holds it.
        gpu_class: the worker's class. It claims jobs of that class and jobs of none.
        without: tenants whose jobs may not start.
    """
    if device is not None and not attempts.is_device_free(session, device):
        return None
    # Skips rows that another worker is claiming right now (PostgreSQL; SQLite has one writer at a time).
    job_id = session.scalar(_next(gpu_class, without).with_for_update(skip_locked=True))
    values = {
        "attempt": JobRecord.attempt + 1,
        "lease_token": uuid.uuid4().hex,
        "lease_expires_at": db_now() + lease_s,
        "phase": "preparing",
        "started_at": func.coalesce(JobRecord.started_at, db_now()),
        "seconds_left": None,
        "not_before": None,
        "pause_reason": None,
        "reported": 0,
    }
    data = {"worker": worker, "device": device or "cpu"}
    if job_id is None or not _transition(session, Cause.CLAIM, JobRecord.id == job_id, values, data):
        return None
    job = get(session, job_id)
    assert job is not None
    try:
        attempts.opened(session, job_id, job.attempt, worker=worker, gpu_class=gpu_class, device=device)
    except IntegrityError:
        # Another worker has claimed with the same device since the check; this claim must be undone entirely.
        session.rollback()
        return None
    return job


def next_claimable(session: Session, gpu_class: str | None, *, without: Collection[str]) -> JobRecord | None:
    """The job that `claim_next` would claim for a worker of a class."""
    job_id = session.scalar(_next(gpu_class, without))
    return get(session, job_id) if job_id else None


def _next(gpu_class: str | None, without: Collection[str]) -> Select[str]:
    claimable = JobRecord.state == JobState.QUEUED, _is_served_by(gpu_class), _may_start(), JobRecord.tenant.not_in(without)
    order = JobRecord.priority.desc(), JobRecord.turn, JobRecord.number
    return select(JobRecord.id).where(*claimable).order_by(*order).limit(1)


def _may_start() -> ColumnElement[bool]:
    """Whether the pause after a loss is over."""
    return or_(JobRecord.not_before.is_(None), JobRecord.not_before <= db_now())


def _is_served_by(gpu_class: str | None) -> ColumnElement[bool]:
    has_none = JobRecord.gpu_class.is_(None)
    return has_none if gpu_class is None else or_(has_none, JobRecord.gpu_class == gpu_class)


def renew(session: Session, fence: Fence, lease_s: float) -> bool:
    """Renews the lease. False: the attempt has lost the job."""
    return _write(session, fence, {"lease_expires_at": db_now() + lease_s})


def requested(session: Session, fence: Fence) -> str | None:
    """What a user asked of the attempt (a `Request`), or "" for nothing. None: the attempt has lost the job."""
    row = session.execute(select(JobRecord.requested).where(fence.condition())).one_or_none()
    return None if row is None else row.requested or ""


def record(
    session: Session,
    fence: Fence,
    event: str,
    data: dict[str, Any],
    values: dict[str, Any] | None = None,
    *,
    report: int | None = None,
) -> bool:
    """Writes columns and an event of a running attempt together. False: nothing was written.

    Args:
        report: the report's number in its attempt, from 1. A report is stored only once, so a write whose confirmation
            was lost can be retried. None: not numbered.
    """
    condition = fence.condition()
    values = dict(values or {})
    if report is not None:
        condition = and_(condition, JobRecord.reported < report)
        values["reported"] = report
    statement = (
        update(JobRecord)
        .where(condition)
        .values(event_count=JobRecord.event_count + 1, **values)
        .returning(JobRecord.event_count, db_now().label("now"))
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        return False
    full = {"attempt": fence.attempt, **data}
    session.add(EventRecord(job_id=fence.job_id, sequence=row.event_count, type=event, data=full, created_at=row.now))
    return True


def set_progress(
    session: Session, fence: Fence, step: int, total_steps: int, seconds_left: float | None, *, tokens: int = 0
) -> bool:
    """Records the attempt's steps and tokens, without an event."""
    if not _write(session, fence, {"step": step, "total_steps": total_steps, "seconds_left": seconds_left}):
        return False
    attempts.set_last_step(session, fence.job_id, fence.attempt, step, tokens)
    return True


def set_first_step(session: Session, fence: Fence, step: int) -> bool:
    """Records the step at which the attempt began to train."""
    held = session.scalar(select(JobRecord.number).where(fence.condition())) is not None
    if held:
        attempts.set_first_step(session, fence.job_id, fence.attempt, step)
    return held


def keep_checkpoint(session: Session, fence: Fence, step: int) -> None:
    """Records the step of a checkpoint. One beyond all earlier checkpoints resets the count of lost workers."""
    session.execute(
        update(JobRecord)
        .where(fence.condition(), JobRecord.checkpoint_step < step)
        .values(checkpoint_step=step, losses=0)
        .execution_options(synchronize_session=False)
    )


def add_warning(session: Session, fence: Fence, warning: dict[str, Any], report: int | None = None) -> bool:
    """Adds a warning to the job with its event, unless the job already has it."""
    job = session.scalar(select(JobRecord).where(fence.condition()))
    if job is None:
        return False
    if warning in job.warnings:
        return True
    return record(session, fence, "warning", warning, {"warnings": [*job.warnings, warning]}, report=report)


def finish(
    session: Session,
    fence: Fence,
    cause: Cause,
    values: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    *,
    reason: str | None = None,
) -> bool:
    """Ends an attempt: success, failure, cancel, pause or preemption. False: the attempt had lost the job.

    If the job would continue, a request that arrived after the worker's last check is still honoured.
    """
    if cause in (Cause.PREEMPT, Cause.PAUSE):
        query = select(JobRecord.requested, JobRecord.pause_reason).where(fence.condition()).with_for_update()
        asked, because = session.execute(query).one_or_none() or (None, None)
        if asked in (Request.CANCEL, Request.CANCEL_SAVING):
            cause, reason = Cause.CANCEL, say("cancelled_on_request")
            values = {**(values or {}), "error": error_dict("cancelled", say("cancelled_running"))}
        elif asked == Request.PAUSE:
            cause = Cause.PAUSE
            if because:
                reason = say("paused_because", reason=say(f"limit.{because}"))
                data = {**(data or {}), "because": because}
    unpublished = {"published_at": None} if cause is Cause.PREEMPT else {}
    changed = {**_RELEASED, **unpublished, **(values or {})}
    return _transition(session, cause, fence.condition(), changed, data, reason=reason) is not None


def cancel_idle(session: Session, job_id: str) -> bool:
    """Cancels a job that no worker holds."""
    where = and_(JobRecord.id == job_id, JobRecord.state.in_((JobState.QUEUED, JobState.PAUSED)))
    error = error_dict("cancelled", say("cancelled_idle"))
    return _transition(session, Cause.CANCEL, where, {"error": error}) is not None


def pause_queued(session: Session, job_id: str) -> bool:
    """Pauses a job that no worker holds."""
    where = and_(JobRecord.id == job_id, JobRecord.state == JobState.QUEUED)
    return _transition(session, Cause.PAUSE, where, {"pause_reason": None}, {"checkpoint": False}) is not None


def resume(session: Session, job_id: str, changes: dict[str, Any] | None = None) -> bool:
    """Requeues a paused job at its old place, with changes to its columns."""
    values = {"published_at": db_now(), "losses": 0, "not_before": None, "pause_reason": None, **(changes or {})}
    return _transition(session, Cause.RESUME, JobRecord.id == job_id, values) is not None


def request(session: Session, job_id: str, what: Request, *, because: PauseReason | None = None) -> bool:
    """Sends a request to the worker of a running job. False: it is not running, or was already asked for as much.

    Args:
        because: the limit that the job has reached; None: a person asks.
    """
    replaced = or_(JobRecord.requested.is_(None), JobRecord.requested.in_([r.value for r in REPLACES[what]]))
    statement = (
        update(JobRecord)
        .where(JobRecord.id == job_id, JobRecord.state == JobState.RUNNING, replaced)
        .values(requested=what.value, pause_reason=because, event_count=JobRecord.event_count + 1)
        .returning(JobRecord.event_count, db_now().label("now"))
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        return False
    kind = "pause_requested" if what is Request.PAUSE else "cancel_requested"
    data: dict[str, Any] = {"save_checkpoint": True} if what is Request.CANCEL_SAVING else {}
    if because:
        data["because"] = because.value
    session.add(EventRecord(job_id=job_id, sequence=row.event_count, type=kind, data=data, created_at=row.now))
    return True


def reap(session: Session, max_losses: int) -> list[str]:
    """Ends every attempt whose lease expired: requeues its job, or applies its pending request. Returns the jobs' ids."""
    expired = and_(JobRecord.state == JobState.RUNNING, JobRecord.lease_expires_at < db_now())
    # Locked, so that a concurrent request is either seen here or finds the job's new state (PostgreSQL).
    found = session.scalars(select(JobRecord).where(expired).with_for_update(skip_locked=True)).all()
    return [
        job.id
        for job in found
        if _lose(
            session,
            job,
            and_(JobRecord.id == job.id, JobRecord.attempt == job.attempt, expired),
            max_losses,
            reason=say("lease_expired"),
        )
    ]


def shorten_leases(session: Session, lease_s: float) -> None:
    """Shortens leases that end later than `lease_s` from now: they were written before the clock jumped back."""
    session.execute(
        update(JobRecord)
        .where(JobRecord.state == JobState.RUNNING, JobRecord.lease_expires_at > db_now() + lease_s)
        .values(lease_expires_at=db_now() + lease_s)
        .execution_options(synchronize_session=False)
    )


def lose(session: Session, fence: Fence, max_losses: int, reason: str, pause_s: float = 0.0) -> bool:
    """Ends an attempt whose training process died. False: the attempt had lost the job.

    Args:
        pause_s: seconds until the first retry; doubled with each further loss.
    """
    job = session.scalar(select(JobRecord).where(fence.condition()).with_for_update())
    return job is not None and _lose(session, job, fence.condition(), max_losses, reason=reason, pause_s=pause_s)


def _lose(
    session: Session,
    job: JobRecord,
    where: ColumnElement[bool],
    max_losses: int,
    *,
    reason: str,
    pause_s: float = 0.0,
) -> bool:
    values: dict[str, Any] = {**_RELEASED, "losses": JobRecord.losses + 1}
    losses = job.losses + 1
    if job.requested in (Request.CANCEL, Request.CANCEL_SAVING):
        cause = Cause.CANCEL
        values |= {"error": error_dict("cancelled", say("cancelled_lost", reason=reason))}
    elif job.requested == Request.PAUSE:
        cause = Cause.PAUSE
    elif losses >= max_losses:
        cause = Cause.FAIL
        message = say("job_poisoned", n=losses, step=job.checkpoint_step, reason=reason)
        values |= {"error": error_dict("poisoned", message)}
    else:
        cause = Cause.LOSE
        values |= {"published_at": None}
        if pause_s:
            values |= {"not_before": db_now() + pause_s * 2 ** (losses - 1)}
    data = {"reason": reason, "reason_said": attempts.as_stored(reason)}
    if cause is Cause.PAUSE and job.pause_reason:
        data["because"] = job.pause_reason
    return _transition(session, cause, where, values, data, reason=reason) is not None


def unclaimed(session: Session, older_than_s: float, limit: int = 100) -> Sequence[JobRecord]:
    """Queued jobs whose message was not published or seems lost: sent over `older_than_s` seconds ago, or in the future."""
    published = JobRecord.published_at
    late = or_(published.is_(None), published < db_now() - older_than_s, published > db_now() + 1)
    query = select(JobRecord).where(JobRecord.state == JobState.QUEUED, late, _may_start())
    return session.scalars(query.order_by(published.asc().nulls_first(), JobRecord.number).limit(limit)).all()


def queued_by_class(session: Session) -> dict[str | None, int]:
    """The number of queued jobs in each class."""
    query = select(JobRecord.gpu_class, func.count()).where(JobRecord.state == JobState.QUEUED)
    return {row[0]: row[1] for row in session.execute(query.group_by(JobRecord.gpu_class))}


def mark_published(session: Session, job_id: str) -> None:
    session.execute(update(JobRecord).where(JobRecord.id == job_id).values(published_at=db_now()))


def mark_unpublished(session: Session, job_id: str) -> None:
    """Marks a queued job whose message the broker did not accept."""
    waits = and_(JobRecord.id == job_id, JobRecord.state == JobState.QUEUED)
    session.execute(update(JobRecord).where(waits).values(published_at=None))


def _write(session: Session, fence: Fence, values: dict[str, Any]) -> bool:
    statement = update(JobRecord).where(fence.condition()).values(**values).returning(JobRecord.number)
    return session.scalar(statement.execution_options(synchronize_session=False)) is not None
