"""The base of every service behind the API: a caller, who sees only the tenant's own things."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypeVar

from sqlalchemy.orm import Session

from jobs import quotas, tracing
from jobs.access import LOCAL, Caller
from jobs.database import Database
from jobs.errors import NotFound, StateConflict
from jobs.queue import JobQueue
from jobs.records import JobRecord, TaskRecord
from jobs.repository import jobs, tasks, turns
from jobs.settings import Settings
from jobs.states import TaskKind
from trainer_core.wording import say

Found = TypeVar("Found")
WaitingFor = Literal["worker", "broker", "pause", "quota", "gpu"]


@dataclass(frozen=True)
class TenantService:
    """A service as one caller sees it: other tenants' things do not exist.

    Its methods raise `TafdilError`s and return records detached from their session.
    """

    database: Database
    queue: JobQueue
    settings: Settings
    caller: Caller = LOCAL

    def for_caller(self, caller: Caller) -> Self:
        return replace(self, caller=caller)

    @property
    def tenant(self) -> str:
        return self.caller.tenant

    @property
    def waiting_for(self) -> WaitingFor:
        """What queued jobs and tasks wait for: a free worker, or a broker that is away and cannot wake one."""
        return "worker" if self.queue.is_up() else "broker"

    def task(self, task_id: str) -> TaskRecord:
        with self.database.reading() as session:
            return found(tasks.owned(session, self.tenant, task_id), "task", task_id)

    def own_job(self, session: Session, job_id: str) -> JobRecord:
        return found(jobs.owned(session, self.tenant, job_id), "job", job_id)

    def ask(
        self,
        kind: TaskKind,
        request: dict[str, Any],
        job_id: str | None = None,
        *,
        depends_on: Sequence[Any] = (),
        joins: bool = True,
    ) -> TaskRecord:
        """Stores a task and wakes a worker for it. An equal request joins a task that is not done yet.

        Args:
            depends_on: as JSON, what the answer depends on besides the request, such as the versions of files.
            joins: whether it may join; not where each request has an answer of its own.

        Raises:
            RateLimited: the tenant's quota is exhausted.
        """
        canonical = json.dumps([kind, job_id, request, *depends_on], ensure_ascii=False, sort_keys=True)
        request_sha256 = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest() if joins else None
        with self.database.transaction() as session:
            # Equal requests at once wait for each other here, and find each other.
            turns.take(session, self.tenant)
            if request_sha256 and (known := tasks.open_equal(session, self.tenant, request_sha256)):
                return known
            quotas.check_task(session, self.settings, self.tenant)
            task_id = tasks.insert(
                session,
                kind,
                self.tenant,
                request,
                job_id,
                traceparent=tracing.current_traceparent(),
                request_sha256=request_sha256,
            )
        self.queue.publish_task(task_id, kind)
        return self.task(task_id)

    def cancel_task(self, task_id: str) -> TaskRecord:
        """Cancels a waiting task immediately, or asks the worker of a running one. Raises `StateConflict` otherwise."""
        with self.database.transaction() as session:
            # Without the lock, both statements below miss a task that its worker returns to the queue in between.
            found(tasks.owned(session, self.tenant, task_id, lock=True), "task", task_id)
            changed = tasks.cancel_queued(session, task_id) or tasks.request_cancel(session, task_id)
            session.expire_all()
            task = found(tasks.owned(session, self.tenant, task_id), "task", task_id)
            if not changed:
                standing = say(f"task_already.{task.requested or task.state}")
                raise StateConflict(say("task_cannot_be_cancelled", id=task_id, standing=standing))
        self.queue.nudge(task_id)
        return task


def found(record: Found | None, kind: str, subject_id: str) -> Found:
    """The record itself. Raises `NotFound` for None."""
    if record is None:
        raise NotFound(say(f"not_found.{kind}", id=subject_id))
    return record
