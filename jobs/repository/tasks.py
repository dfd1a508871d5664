"""Tasks: queued, claimed and answered like jobs, with their own leases and fences."""

import uuid
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import null, or_, select, update
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import TaskRecord
from jobs.states import TaskKind, TaskState
from trainer_core.errors import error_dict
from trainer_core.wording import say

_FINAL = (TaskState.SUCCEEDED, TaskState.FAILED)


def insert(
    session: Session,
    kind: TaskKind,
    tenant: str,
    request: dict[str, Any],
    job_id: str | None = None,
    *,
    traceparent: str | None = None,
) -> str:
    """Adds a queued task and returns its id."""
    task_id = uuid.uuid4().hex
    now = session.scalar(select(db_now()))
    session.add(
        TaskRecord(
            id=task_id,
            tenant=tenant,
            kind=kind,
            job_id=job_id,
            request=request,
            state=TaskState.QUEUED,
            created_at=now,
            published_at=now,
            traceparent=traceparent,
        )
    )
    return task_id


def get(session: Session, task_id: str) -> TaskRecord | None:
    return session.scalar(select(TaskRecord).where(TaskRecord.id == task_id))


def owned(session: Session, tenant: str, task_id: str) -> TaskRecord | None:
    """One of the tenant's tasks."""
    return session.scalar(select(TaskRecord).where(TaskRecord.id == task_id, TaskRecord.tenant == tenant))


def of_job(session: Session, job_id: str, kind: TaskKind, limit: int, before: int | None = None) -> Sequence[TaskRecord]:
    """A job's tasks of a kind, newest first, numbered below `before`."""
    query = select(TaskRecord).where(TaskRecord.job_id == job_id, TaskRecord.kind == kind)
    if before is not None:
        query = query.where(TaskRecord.number < before)
    return session.scalars(query.order_by(TaskRecord.number.desc()).limit(limit)).all()


def claim_next(session: Session, kinds: Collection[TaskKind], lease_s: float) -> TaskRecord | None:
    """Claims the oldest task of the given kinds that is queued, or whose lease has expired."""
    lost = (TaskRecord.state == TaskState.RUNNING) & (TaskRecord.lease_expires_at < db_now())
    free = or_(TaskRecord.state == TaskState.QUEUED, lost)
    wanted = select(TaskRecord.id).where(free, TaskRecord.kind.in_(kinds))
    for task_id in session.scalars(wanted.order_by(TaskRecord.number).limit(8)).all():
        statement = (
            update(TaskRecord)
            .where(TaskRecord.id == task_id, free)
            .values(
                state=TaskState.RUNNING,
                attempt=TaskRecord.attempt + 1,
                lease_token=uuid.uuid4().hex,
                lease_expires_at=db_now() + lease_s,
            )
            .returning(TaskRecord.number)
            .execution_options(synchronize_session=False)
        )
        if session.scalar(statement) is not None:
            session.expire_all()
            return get(session, task_id)
    return None


def renew(session: Session, task: TaskRecord, lease_s: float) -> None:
    """Renews the lease of the worker that holds the task."""
    session.execute(
        update(TaskRecord)
        .where(TaskRecord.id == task.id, TaskRecord.lease_token == task.lease_token)
        .values(lease_expires_at=db_now() + lease_s)
        .execution_options(synchronize_session=False)
    )


def shorten_leases(session: Session, lease_s: float) -> None:
    """Shortens leases that end later than `lease_s` from now: they were written before the clock jumped back."""
    session.execute(
        update(TaskRecord)
        .where(TaskRecord.state == TaskState.RUNNING, TaskRecord.lease_expires_at > db_now() + lease_s)
        .values(lease_expires_at=db_now() + lease_s)
        .execution_options(synchronize_session=False)
    )


def tell(session: Session, task: TaskRecord, partial: dict[str, Any]) -> None:
    """Stores the partial answer, for clients that stream it."""
    session.execute(
        update(TaskRecord)
        .where(
            TaskRecord.id == task.id,
            TaskRecord.lease_token == task.lease_token,
            TaskRecord.state == TaskState.RUNNING,
        )
        .values(partial=partial)
        .execution_options(synchronize_session=False)
    )


def poison(session: Session, max_losses: int) -> list[str]:
    """Fails every task that has lost `max_losses` workers. Returns their ids."""
    lost = (TaskRecord.state == TaskState.RUNNING) & (TaskRecord.lease_expires_at < db_now())
    statement = (
        update(TaskRecord)
        .where(lost, TaskRecord.attempt >= max_losses)
        .values(
            state=TaskState.FAILED,
            error=error_dict("poisoned", say("task_poisoned", n=max_losses)),
            lease_token=None,
            lease_expires_at=None,
            finished_at=db_now(),
        )
        .returning(TaskRecord.id)
        .execution_options(synchronize_session=False)
    )
    return list(session.scalars(statement))


def is_held(session: Session, task: TaskRecord) -> bool:
    """Whether the worker still holds the task. If so, it keeps it until the transaction ends."""
    query = select(TaskRecord.number).where(
        TaskRecord.id == task.id, TaskRecord.lease_token == task.lease_token, TaskRecord.state == TaskState.RUNNING
    )
    return session.scalar(query.with_for_update()) is not None


def running_for(session: Session, job_id: str) -> TaskRecord | None:
    """A task that a worker is running for a job."""
    query = select(TaskRecord).where(TaskRecord.job_id == job_id, TaskRecord.state == TaskState.RUNNING)
    return session.scalar(query.limit(1))


def finish(
    session: Session,
    task: TaskRecord,
    result: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
) -> bool:
    """Stores the answer or the error. False: another worker has taken over the task."""
    statement = (
        update(TaskRecord)
        .where(
            TaskRecord.id == task.id,
            TaskRecord.lease_token == task.lease_token,
            TaskRecord.state.not_in(_FINAL),
        )
        .values(
            state=TaskState.FAILED if error else TaskState.SUCCEEDED,
            partial=null(),
            result=result,
            error=error,
            lease_token=None,
            lease_expires_at=None,
            finished_at=db_now(),
        )
        .returning(TaskRecord.number)
        .execution_options(synchronize_session=False)
    )
    return session.scalar(statement) is not None


def unclaimed(session: Session, older_than_s: float, limit: int = 100) -> list[tuple[str, TaskKind]]:
    """Ids and kinds of tasks whose message or worker seems lost."""
    lost = (TaskRecord.state == TaskState.RUNNING) & (TaskRecord.lease_expires_at < db_now())
    published = TaskRecord.published_at
    # In the future: the clock jumped back.
    late = published.is_(None) | (published < db_now() - older_than_s) | (published > db_now() + 1)
    queued = TaskRecord.state == TaskState.QUEUED
    query = select(TaskRecord.id, TaskRecord.kind).where((queued & late) | (lost & late))
    rows = session.execute(query.order_by(TaskRecord.number).limit(limit))
    return [(row.id, TaskKind(row.kind)) for row in rows]


def mark_published(session: Session, task_id: str) -> None:
    session.execute(update(TaskRecord).where(TaskRecord.id == task_id).values(published_at=db_now()))


def mark_unpublished(session: Session, task_id: str) -> None:
    """Marks a queued task whose message the broker did not accept."""
    waits = (TaskRecord.id == task_id) & (TaskRecord.state == TaskState.QUEUED)
    session.execute(update(TaskRecord).where(waits).values(published_at=None))
