"""Tasks: queued, claimed in turns, cancelled, lost and answered like jobs, with their own leases and fences."""

import uuid
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, func, not_, null, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import TaskEndRecord, TaskRecord
from jobs.states import ANSWERED_BY, BACKGROUND, Request, TaskEnd, TaskKind, TaskState
from trainer_core.errors import error_dict
from trainer_core.wording import say

_OPEN = (TaskState.QUEUED, TaskState.RUNNING)
# Columns to reset when a task leaves its worker.
_RELEASED: dict[str, Any] = {"lease_token": None, "lease_expires_at": None, "requested": None, "partial": null()}


def insert(
    session: Session,
    kind: TaskKind,
    tenant: str,
    request: dict[str, Any],
    job_id: str | None = None,
    *,
    traceparent: str | None = None,
    request_sha256: str | None = None,
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
            request_sha256=request_sha256,
            state=TaskState.QUEUED,
            turn=_next_turn(session, tenant, ANSWERED_BY[kind].kinds),
            created_at=now,
            published_at=now,
            traceparent=traceparent,
        )
    )
    session.flush()
    return task_id


def _next_turn(session: Session, tenant: str, kinds: Collection[TaskKind]) -> int:
    """As for jobs: one after the tenant's last turn at this worker, or where the queue stands if that is later."""
    never_began = and_(TaskRecord.state == TaskState.CANCELLED, TaskRecord.attempt == 0)
    mine = max((_last_turn(session, kind, TaskRecord.tenant == tenant, not_(never_began)) for kind in kinds), default=0)
    waiting = and_(TaskRecord.state == TaskState.QUEUED, TaskRecord.attempt == 0, TaskRecord.kind.in_(kinds))
    now = session.scalar(select(TaskRecord.turn).where(waiting).order_by(TaskRecord.turn).limit(1))
    if now is None:
        now = max((_last_turn(session, kind) for kind in kinds), default=0)
    return max(mine + 1, now)


def _last_turn(session: Session, kind: TaskKind, *where: ColumnElement[bool]) -> int:
    query = select(TaskRecord.turn).where(TaskRecord.kind == kind, *where)
    return session.scalar(query.order_by(TaskRecord.turn.desc()).limit(1)) or 0


def get(session: Session, task_id: str) -> TaskRecord | None:
    return session.scalar(select(TaskRecord).where(TaskRecord.id == task_id))


def owned(session: Session, tenant: str, task_id: str, *, lock: bool = False) -> TaskRecord | None:
    """One of the tenant's tasks. With `lock` nobody else changes it until the transaction ends."""
    query = select(TaskRecord).where(TaskRecord.id == task_id, TaskRecord.tenant == tenant)
    return session.scalar(query.with_for_update() if lock else query)


def of_job(session: Session, job_id: str, kind: TaskKind, limit: int, before: int | None = None) -> Sequence[TaskRecord]:
    """A job's tasks of a kind, newest first, numbered below `before`."""
    query = select(TaskRecord).where(TaskRecord.job_id == job_id, TaskRecord.kind == kind)
    if before is not None:
        query = query.where(TaskRecord.number < before)
    return session.scalars(query.order_by(TaskRecord.number.desc()).limit(limit)).all()


def open_equal(session: Session, tenant: str, request_sha256: str) -> TaskRecord | None:
    """A queued or running task of the tenant with the same request, unless it is being cancelled."""
    query = select(TaskRecord).where(
        TaskRecord.tenant == tenant,
        TaskRecord.state.in_(_OPEN),
        TaskRecord.request_sha256 == request_sha256,
        TaskRecord.requested.is_(None),
    )
    return session.scalar(query.limit(1))


def succeeded(session: Session, job_id: str, kind: TaskKind) -> TaskRecord | None:
    """A job's newest task of a kind that succeeded."""
    query = select(TaskRecord).where(
        TaskRecord.job_id == job_id, TaskRecord.kind == kind, TaskRecord.state == TaskState.SUCCEEDED
    )
    return session.scalar(query.order_by(TaskRecord.number.desc()).limit(1))


def count_open(session: Session, tenant: str) -> int:
    """Number of the tenant's tasks that are not done."""
    query = select(func.count()).select_from(TaskRecord)
    return session.scalar(query.where(TaskRecord.tenant == tenant, TaskRecord.state.in_(_OPEN))) or 0


def claim_next(
    session: Session, kinds: Collection[TaskKind], lease_s: float, *, idle_tenants_only: bool = False
) -> TaskRecord | None:
    """Claims the next queued task of the given kinds, with a new attempt and a lease of `lease_s` seconds.

    Tenants with the fewest running tasks of these kinds come first. Among equals they take turns, and each tenant's oldest
    task comes first.

    Args:
        idle_tenants_only: claim only for tenants that have none running, and nothing in the background.
    """
    while (task_id := _next_waiting(session, kinds, idle_tenants_only)) is not None:
        statement = (
            update(TaskRecord)
            .where(TaskRecord.id == task_id, TaskRecord.state == TaskState.QUEUED)
            .values(
                state=TaskState.RUNNING,
                attempt=TaskRecord.attempt + 1,
                lease_token=uuid.uuid4().hex,
                lease_expires_at=db_now() + lease_s,
                requested=None,
                not_before=None,
            )
            .returning(TaskRecord.number)
            .execution_options(synchronize_session=False)
        )
        if session.scalar(statement) is not None:
            session.expire_all()
            return get(session, task_id)
    return None


def is_waiting(session: Session, kinds: Collection[TaskKind], *, idle_tenants_only: bool = False) -> bool:
    """Whether there is something to claim, without locking it."""
    return any(session.scalar(query.limit(1)) is not None for query in _waiting_queries(session, kinds, idle_tenants_only))


def _next_waiting(session: Session, kinds: Collection[TaskKind], idle_tenants_only: bool) -> str | None:
    for query in _waiting_queries(session, kinds, idle_tenants_only):
        # Skips rows that another worker is claiming right now (PostgreSQL; SQLite has one writer at a time).
        found = session.scalar(query.limit(1).with_for_update(skip_locked=True))
        if found is not None:
            return found
    return None


def _waiting_queries(session: Session, kinds: Collection[TaskKind], idle_tenants_only: bool) -> Iterator[Any]:
    """Queries of waiting tasks' ids: first those of tenants with nothing running, then with one task running, and so on.

    Background tasks come after all others, and do not count as running.
    """
    awaited = [kind for kind in kinds if kind not in BACKGROUND]
    busy = select(TaskRecord.tenant, func.count()).where(TaskRecord.state == TaskState.RUNNING, TaskRecord.kind.in_(awaited))
    running: dict[str, int] = {row[0]: row[1] for row in session.execute(busy.group_by(TaskRecord.tenant))}
    waiting = and_(TaskRecord.state == TaskState.QUEUED, TaskRecord.kind.in_(awaited), _may_start())
    query = select(TaskRecord.id).where(waiting).order_by(TaskRecord.turn, TaskRecord.number)
    yield query.where(TaskRecord.tenant.not_in(running)) if running else query
    if idle_tenants_only:
        return
    for count in sorted(set(running.values())):
        yield query.where(TaskRecord.tenant.in_([tenant for tenant, n in running.items() if n == count]))
    if len(awaited) < len(kinds):
        waiting = and_(TaskRecord.state == TaskState.QUEUED, TaskRecord.kind.in_(BACKGROUND), _may_start())
        yield select(TaskRecord.id).where(waiting).order_by(TaskRecord.turn, TaskRecord.number)


def _may_start() -> ColumnElement[bool]:
    """Whether the pause after a loss is over."""
    return or_(TaskRecord.not_before.is_(None), TaskRecord.not_before <= db_now())


def _is_held(task: TaskRecord) -> ColumnElement[bool]:
    """The right to write: the lease of one attempt. A stale worker's task matches no row."""
    return and_(TaskRecord.id == task.id, TaskRecord.lease_token == task.lease_token, TaskRecord.state == TaskState.RUNNING)


def renew(session: Session, task: TaskRecord, lease_s: float) -> None:
    """Renews the lease of the worker that holds the task."""
    session.execute(
        update(TaskRecord)
        .where(_is_held(task))
        .values(lease_expires_at=db_now() + lease_s)
        .execution_options(synchronize_session=False)
    )


def requested(session: Session, task: TaskRecord) -> str | None:
    """What a user asked of the running task: `cancel`, or "" for nothing. None: the worker has lost the task."""
    row = session.execute(select(TaskRecord.requested).where(_is_held(task))).one_or_none()
    return None if row is None else row.requested or ""


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
        update(TaskRecord).where(_is_held(task)).values(partial=partial).execution_options(synchronize_session=False)
    )


def is_held(session: Session, task: TaskRecord) -> bool:
    """Whether the worker still holds the task. If so, it keeps it until the transaction ends."""
    return session.scalar(select(TaskRecord.number).where(_is_held(task)).with_for_update()) is not None


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
    """Stores the answer or the error. False: another worker has taken over the task, or it is over."""
    end = TaskEnd.SUCCEEDED if error is None else _END_OF.get(error["code"], TaskEnd.FAILED)
    state = TaskState.FAILED if error else TaskState.SUCCEEDED
    return _over(session, _is_held(task), state, {"result": result, "error": error}, end=end) is not None


_END_OF = {"timeout": TaskEnd.TIMEOUT, "oom_host": TaskEnd.OOM, "poisoned": TaskEnd.POISONED}


def cancel_queued(session: Session, task_id: str) -> bool:
    """Cancels a task that no worker holds."""
    where = and_(TaskRecord.id == task_id, TaskRecord.state == TaskState.QUEUED)
    error = error_dict("cancelled", say("cancelled_idle"))
    return _over(session, where, TaskState.CANCELLED, {"error": error}, end=TaskEnd.CANCELLED) is not None


def request_cancel(session: Session, task_id: str) -> bool:
    """Asks the worker of a running task to end it. False: it is not running, or was already asked."""
    statement = (
        update(TaskRecord)
        .where(TaskRecord.id == task_id, TaskRecord.state == TaskState.RUNNING, TaskRecord.requested.is_(None))
        .values(requested=Request.CANCEL.value)
        .returning(TaskRecord.number)
        .execution_options(synchronize_session=False)
    )
    return session.scalar(statement) is not None


def cancel_held(session: Session, task: TaskRecord) -> bool:
    """Cancels a running task whose process is gone. False: its worker had lost it."""
    error = error_dict("cancelled", say("cancelled_running"))
    return _over(session, _is_held(task), TaskState.CANCELLED, {"error": error}, end=TaskEnd.CANCELLED) is not None


def _over(
    session: Session, where: ColumnElement[bool], state: TaskState, values: dict[str, Any], *, end: TaskEnd
) -> str | None:
    """Ends a task for good. Returns its kind, or None if nothing matched."""
    statement = (
        update(TaskRecord)
        .where(where)
        .values({**_RELEASED, "state": state, "finished_at": db_now(), **values})
        .returning(TaskRecord.kind)
        .execution_options(synchronize_session=False)
    )
    kind = session.scalar(statement)
    if kind is not None:
        _count(session, kind, end)
    return kind


def release(session: Session, task: TaskRecord) -> bool:
    """Queues a task again because its worker is shutting down, which counts as no loss.

    Returns False if the worker had lost it.
    """
    held = session.scalar(select(TaskRecord).where(_is_held(task)).with_for_update())
    if held is not None and held.requested:
        return cancel_held(session, task)
    return _requeue(session, _is_held(task), {}, TaskEnd.RELEASED)


def lose(session: Session, task: TaskRecord, max_losses: int, reason: str, pause_s: float = 0.0) -> bool:
    """Ends an attempt whose process died. False: its worker had lost the task.

    Args:
        pause_s: seconds until the first retry; doubled with each further loss.
    """
    held = session.scalar(select(TaskRecord).where(_is_held(task)).with_for_update())
    return held is not None and _lose(session, held, _is_held(task), max_losses, reason=reason, pause_s=pause_s)


def reap(session: Session, max_losses: int) -> list[str]:
    """Ends every attempt whose lease expired: queues its task again, or applies its pending cancel. Returns the ids."""
    expired = and_(TaskRecord.state == TaskState.RUNNING, TaskRecord.lease_expires_at < db_now())
    found = session.scalars(select(TaskRecord).where(expired).with_for_update(skip_locked=True)).all()
    return [
        task.id
        for task in found
        if _lose(
            session,
            task,
            and_(TaskRecord.id == task.id, TaskRecord.lease_token == task.lease_token, expired),
            max_losses,
            reason=say("lease_expired"),
        )
    ]


def _lose(
    session: Session,
    task: TaskRecord,
    where: ColumnElement[bool],
    max_losses: int,
    *,
    reason: str,
    pause_s: float = 0.0,
) -> bool:
    losses = task.losses + 1
    if task.requested:
        error = error_dict("cancelled", say("cancelled_lost", reason=reason))
        return _over(session, where, TaskState.CANCELLED, {"error": error}, end=TaskEnd.CANCELLED) is not None
    if losses >= max_losses:
        values = {"losses": losses, "error": error_dict("poisoned", say("task_poisoned", n=losses, reason=reason))}
        return _over(session, where, TaskState.FAILED, values, end=TaskEnd.POISONED) is not None
    paused = {"not_before": db_now() + pause_s * 2 ** (losses - 1)} if pause_s else {}
    return _requeue(session, where, {"losses": losses, **paused}, TaskEnd.LOST)


def _requeue(session: Session, where: ColumnElement[bool], values: dict[str, Any], end: TaskEnd) -> bool:
    statement = (
        update(TaskRecord)
        .where(where)
        .values({**_RELEASED, "state": TaskState.QUEUED, "published_at": None, **values})
        .returning(TaskRecord.kind)
        .execution_options(synchronize_session=False)
    )
    kind = session.scalar(statement)
    if kind is not None:
        _count(session, kind, end)
    return kind is not None


def _count(session: Session, kind: str, end: TaskEnd) -> None:
    insert_into = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert_into(TaskEndRecord).values(kind=kind, outcome=end.value, count=1)
    key = [TaskEndRecord.kind, TaskEndRecord.outcome]
    session.execute(statement.on_conflict_do_update(index_elements=key, set_={"count": TaskEndRecord.count + 1}))


def unclaimed(session: Session, older_than_s: float, limit: int = 100) -> list[tuple[str, TaskKind]]:
    """Ids and kinds of queued tasks whose message was not published or seems lost."""
    published = TaskRecord.published_at
    # In the future: the clock jumped back.
    late = published.is_(None) | (published < db_now() - older_than_s) | (published > db_now() + 1)
    query = select(TaskRecord.id, TaskRecord.kind).where(TaskRecord.state == TaskState.QUEUED, late, _may_start())
    rows = session.execute(query.order_by(TaskRecord.number).limit(limit))
    return [(row.id, TaskKind(row.kind)) for row in rows]


def mark_published(session: Session, task_id: str) -> None:
    session.execute(update(TaskRecord).where(TaskRecord.id == task_id).values(published_at=db_now()))


def mark_unpublished(session: Session, task_id: str) -> None:
    """Marks a queued task whose message the broker did not accept."""
    waits = (TaskRecord.id == task_id) & (TaskRecord.state == TaskState.QUEUED)
    session.execute(update(TaskRecord).where(waits).values(published_at=None))
