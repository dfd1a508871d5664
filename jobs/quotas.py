"""Quotas per tenant. Each limit is a setting, the same for all tenants; none is set by default.

A tenant's requests take turns, so each check counts what the transaction before it stored.
"""

from sqlalchemy.orm import Session

from jobs.errors import RateLimited, TooLarge
from jobs.repository import attempts, datasets, kept_jobs, turns
from jobs.settings import Settings
from trainer_core.wording import say

_HOUR_S = 3600
_MONTH_S = 30 * 24 * _HOUR_S
# Nobody knows when the next job will end; retrying more often is useless.
_ASK_AGAIN_S = 60


def check_job(session: Session, settings: Settings, tenant: str) -> None:
    """Raises `RateLimited` if the tenant has reached its limit of jobs."""
    most, hours = settings.quota_open_jobs, settings.quota_training_hours
    if most is None and hours is None:
        return
    turns.take(session, tenant)
    if most is not None and kept_jobs.count_open(session, tenant) >= most:
        raise RateLimited(say("quota_jobs", n=most), retry_after_s=_ASK_AGAIN_S)
    if hours is not None and attempts.trained_s(session, tenant, _MONTH_S) >= hours * _HOUR_S:
        raise RateLimited(say("quota_hours", hours=hours), retry_after_s=_HOUR_S)


def check_upload(session: Session, settings: Settings, tenant: str, size_bytes: int) -> None:
    """Raises `TooLarge` if a dataset of this size would exceed the tenant's quota."""
    most = settings.quota_dataset_bytes
    if most is None:
        return
    turns.take(session, tenant)
    if datasets.total_bytes(session, tenant) + size_bytes > most:
        raise TooLarge(say("quota_bytes", most=most))
