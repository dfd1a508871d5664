"""Limits per tenant and per job. Each is a setting, the same for all tenants; none is set by default.

Limits bind while a thing is held, not only when it is asked for: bytes count while they arrive, and hours while jobs run.
A tenant's requests take turns, so each check counts what the transaction before it stored.
"""

from typing import Any

from sqlalchemy.orm import Session

from jobs.errors import RateLimited, StateConflict, TooLarge
from jobs.records import JobRecord
from jobs.repository import datasets, hours, jobs, kept_jobs, tasks, turns
from jobs.settings import Settings
from jobs.states import PauseReason, Request
from trainer_core.errors import SpecInvalid
from trainer_core.wording import say

_HOUR_S = 3600
# Nobody knows when the next job will end; retrying more often is useless.
_ASK_AGAIN_S = 60
_ASK_AGAIN_TASKS_S = 5


def check_job(session: Session, settings: Settings, tenant: str) -> None:
    """Raises `RateLimited` if the tenant has reached its limit of jobs or of hours."""
    most = settings.quota_open_jobs
    if most is not None:
        turns.take(session, tenant)
        if kept_jobs.count_open(session, tenant) >= most:
            raise RateLimited(say("quota_jobs", n=most), retry_after_s=_ASK_AGAIN_S)
    check_hours(session, settings, tenant)


def check_hours(session: Session, settings: Settings, tenant: str) -> None:
    """Raises `RateLimited` if the tenant has used up its training hours."""
    if is_spent(session, settings, tenant):
        raise RateLimited(say("quota_hours", hours=settings.quota_training_hours), retry_after_s=_HOUR_S)


def is_spent(session: Session, settings: Settings, tenant: str) -> bool:
    """Whether the tenant has used up its training hours."""
    most = settings.quota_training_hours
    return most is not None and hours.of_tenant_s(session, tenant) >= most * _HOUR_S


def spent_tenants(session: Session, settings: Settings) -> set[str]:
    """The tenants that have used up their training hours. None of their jobs may start."""
    most = settings.quota_training_hours
    return set() if most is None else hours.tenants_over(session, most * _HOUR_S)


def check_max_hours(settings: Settings, asked: float | None) -> None:
    """Raises `SpecInvalid` if a job may not run for as long as it asks."""
    most = settings.max_hours
    if asked is not None and most is not None and asked > most:
        raise SpecInvalid.at("max_hours", say("max_hours_above", most=most, asked=asked))


def max_hours(settings: Settings, spec: dict[str, Any]) -> float | None:
    """How long a job may run: its own limit or the service's, whichever is smaller. None: no limit."""
    # Jobs stored before the field existed lack it.
    known = [limit for limit in (spec.get("max_hours"), settings.max_hours) if limit is not None]
    return min(known, default=None)


def check_time(session: Session, settings: Settings, job: JobRecord, spec: dict[str, Any]) -> None:
    """Raises `StateConflict` if a job has run for as long as its spec allows."""
    most, used = max_hours(settings, spec), hours.of_job_s(session, job.id) / _HOUR_S
    if most is not None and used >= most:
        raise StateConflict(say("job_out_of_time", id=job.id, used=round(used, 3), most=most))


def enforce(session: Session, settings: Settings) -> list[str]:
    """Asks running jobs that are out of time, or whose tenant is out of hours, to pause. Returns their ids."""
    spent = spent_tenants(session, settings)
    asked: list[str] = []
    for job, used_s in hours.of_running(session):
        most = max_hours(settings, job.resolved_spec)
        if most is not None and used_s >= most * _HOUR_S:
            because = PauseReason.TIME_LIMIT
        elif job.tenant in spent:
            because = PauseReason.QUOTA
        else:
            continue
        if jobs.request(session, job.id, Request.PAUSE, because=because):
            asked.append(job.id)
    return asked


def check_task(session: Session, settings: Settings, tenant: str) -> None:
    """Raises `RateLimited` if the tenant has reached its limit of tasks that are not done."""
    most = settings.quota_open_tasks
    if most is None:
        return
    turns.take(session, tenant)
    if tasks.count_open(session, tenant) >= most:
        raise RateLimited(say("quota_tasks", n=most), retry_after_s=_ASK_AGAIN_TASKS_S)


def check_upload(session: Session, settings: Settings, tenant: str, size_bytes: int) -> None:
    """Raises `TooLarge` if a dataset of this size would exceed the tenant's quota."""
    most = settings.quota_dataset_bytes
    if most is None:
        return
    turns.take(session, tenant)
    if datasets.total_bytes(session, tenant) + size_bytes > most:
        raise TooLarge(say("quota_bytes", most=most))
