"""Comparisons: queued, claimed and answered like jobs, with a lease and a fence of their own."""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import null, or_, select, update
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import ComparisonRecord
from jobs.states import ComparisonState
from trainer_core.errors import error_dict

_FINAL = (ComparisonState.SUCCEEDED, ComparisonState.FAILED)


def insert(session: Session, job_id: str, request: dict[str, Any]) -> str:
    """A new queued comparison; returns its id."""
    comparison_id = uuid.uuid4().hex
    now = session.scalar(select(db_now()))
    session.add(
        ComparisonRecord(
            id=comparison_id,
            job_id=job_id,
            request=request,
            state=ComparisonState.QUEUED,
            created_at=now,
            published_at=now,
        )
    )
    return comparison_id


def get(session: Session, comparison_id: str) -> ComparisonRecord | None:
    return session.scalar(select(ComparisonRecord).where(ComparisonRecord.id == comparison_id))


def claim_next(session: Session, lease_s: float) -> ComparisonRecord | None:
    """Takes the oldest comparison that is queued, or whose worker let its lease run out."""
    lost = (ComparisonRecord.state == ComparisonState.RUNNING) & (ComparisonRecord.lease_expires_at < db_now())
    free = or_(ComparisonRecord.state == ComparisonState.QUEUED, lost)
    candidates = session.scalars(select(ComparisonRecord.id).where(free).order_by(ComparisonRecord.number).limit(8)).all()
    for comparison_id in candidates:
        statement = (
            update(ComparisonRecord)
            .where(ComparisonRecord.id == comparison_id, free)
            .values(
                state=ComparisonState.RUNNING,
                attempt=ComparisonRecord.attempt + 1,
                lease_token=uuid.uuid4().hex,
                lease_expires_at=db_now() + lease_s,
            )
            .returning(ComparisonRecord.number)
            .execution_options(synchronize_session=False)
        )
        if session.scalar(statement) is not None:
            session.expire_all()
            return get(session, comparison_id)
    return None


def renew(session: Session, comparison: ComparisonRecord, lease_s: float) -> None:
    """Prolongs the lease of the worker that holds the comparison."""
    session.execute(
        update(ComparisonRecord)
        .where(ComparisonRecord.id == comparison.id, ComparisonRecord.lease_token == comparison.lease_token)
        .values(lease_expires_at=db_now() + lease_s)
        .execution_options(synchronize_session=False)
    )


def shorten_leases(session: Session, lease_s: float) -> None:
    """Leases never end later than `lease_s` from now: those that do were written before the clock jumped back."""
    session.execute(
        update(ComparisonRecord)
        .where(ComparisonRecord.state == ComparisonState.RUNNING, ComparisonRecord.lease_expires_at > db_now() + lease_s)
        .values(lease_expires_at=db_now() + lease_s)
        .execution_options(synchronize_session=False)
    )


def tell(session: Session, comparison: ComparisonRecord, partial: dict[str, Any]) -> None:
    """Stores the answers so far, for those who watch them grow."""
    session.execute(
        update(ComparisonRecord)
        .where(
            ComparisonRecord.id == comparison.id,
            ComparisonRecord.lease_token == comparison.lease_token,
            ComparisonRecord.state == ComparisonState.RUNNING,
        )
        .values(partial=partial)
        .execution_options(synchronize_session=False)
    )


def poison(session: Session, max_losses: int) -> list[str]:
    """Fails every comparison that lost `max_losses` workers. Returns their ids."""
    lost = (ComparisonRecord.state == ComparisonState.RUNNING) & (ComparisonRecord.lease_expires_at < db_now())
    statement = (
        update(ComparisonRecord)
        .where(lost, ComparisonRecord.attempt >= max_losses)
        .values(
            state=ComparisonState.FAILED,
            error=error_dict("poisoned", f"the generation worker was lost {max_losses} times"),
            lease_token=None,
            lease_expires_at=None,
            finished_at=db_now(),
        )
        .returning(ComparisonRecord.id)
        .execution_options(synchronize_session=False)
    )
    return list(session.scalars(statement))


def finish(
    session: Session,
    comparison: ComparisonRecord,
    result: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
) -> bool:
    """Stores the answer or the error. False: another worker has taken the comparison over."""
    statement = (
        update(ComparisonRecord)
        .where(
            ComparisonRecord.id == comparison.id,
            ComparisonRecord.lease_token == comparison.lease_token,
            ComparisonRecord.state.not_in(_FINAL),
        )
        .values(
            state=ComparisonState.FAILED if error else ComparisonState.SUCCEEDED,
            partial=null(),
            result=result,
            error=error,
            lease_token=None,
            lease_expires_at=None,
            finished_at=db_now(),
        )
        .returning(ComparisonRecord.number)
        .execution_options(synchronize_session=False)
    )
    return session.scalar(statement) is not None


def unclaimed(session: Session, older_than_s: float, limit: int = 100) -> Sequence[str]:
    """Comparisons whose message seems lost, or whose worker is."""
    lost = (ComparisonRecord.state == ComparisonState.RUNNING) & (ComparisonRecord.lease_expires_at < db_now())
    published = ComparisonRecord.published_at
    # In the future: the clock jumped back.
    late = published.is_(None) | (published < db_now() - older_than_s) | (published > db_now() + 1)
    queued = ComparisonRecord.state == ComparisonState.QUEUED
    query = select(ComparisonRecord.id).where((queued & late) | (lost & late))
    return session.scalars(query.order_by(ComparisonRecord.number).limit(limit)).all()


def mark_published(session: Session, comparison_id: str) -> None:
    session.execute(update(ComparisonRecord).where(ComparisonRecord.id == comparison_id).values(published_at=db_now()))
