"""The base of every service behind the API: a caller, who sees only the tenant's own things."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypeVar

from sqlalchemy.orm import Session

from jobs import tracing
from jobs.access import LOCAL, Caller
from jobs.database import Database
from jobs.errors import NotFound
from jobs.queue import JobQueue
from jobs.records import JobRecord, TaskRecord
from jobs.repository import jobs, tasks
from jobs.settings import Settings
from jobs.states import TaskKind
from trainer_core.wording import say

Found = TypeVar("Found")
WaitingFor = Literal["worker", "broker", "pause"]


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

    def ask(self, kind: TaskKind, request: dict[str, Any], job_id: str | None = None) -> TaskRecord:
        """Stores a task and wakes a worker for it."""
        with self.database.transaction() as session:
            traceparent = tracing.current_traceparent()
            task_id = tasks.insert(session, kind, self.tenant, request, job_id, traceparent=traceparent)
        self.queue.publish_task(task_id, kind)
        return self.task(task_id)


def found(record: Found | None, kind: str, subject_id: str) -> Found:
    """The record itself. Raises `NotFound` for None."""
    if record is None:
        raise NotFound(say(f"not_found.{kind}", id=subject_id))
    return record
