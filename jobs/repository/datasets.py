"""Uploaded datasets."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete as sql_delete
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import DatasetRecord


def insert(session: Session, fields: dict[str, Any]) -> DatasetRecord:
    record = DatasetRecord(created_at=session.scalar(select(db_now())), **fields)
    session.add(record)
    session.flush()
    return record


def owned(session: Session, tenant: str, dataset_id: str) -> DatasetRecord | None:
    """One of the tenant's datasets."""
    return session.scalar(select(DatasetRecord).where(DatasetRecord.id == dataset_id, DatasetRecord.tenant == tenant))


def held(session: Session, tenant: str, dataset_id: str) -> bool:
    """Whether the tenant has a dataset. Locks it against deletion until the transaction ends."""
    query = select(DatasetRecord.id).where(DatasetRecord.id == dataset_id, DatasetRecord.tenant == tenant)
    return session.scalar(query.with_for_update(read=True)) is not None


def lock(session: Session, dataset_id: str) -> None:
    """Call before deleting a dataset: waits for jobs being stored with it, and blocks new ones."""
    session.execute(select(DatasetRecord.id).where(DatasetRecord.id == dataset_id).with_for_update())


def delete(session: Session, dataset_id: str) -> None:
    session.execute(sql_delete(DatasetRecord).where(DatasetRecord.id == dataset_id))


def total_bytes(session: Session, tenant: str) -> int:
    """Total size of a tenant's datasets."""
    return session.scalar(select(func.sum(DatasetRecord.size_bytes)).where(DatasetRecord.tenant == tenant)) or 0


def page(session: Session, tenant: str, limit: int, before: int | None = None) -> Sequence[DatasetRecord]:
    """A tenant's datasets, newest first, numbered below `before`."""
    query = select(DatasetRecord).where(DatasetRecord.tenant == tenant).order_by(DatasetRecord.number.desc()).limit(limit)
    if before is not None:
        query = query.where(DatasetRecord.number < before)
    return session.scalars(query).all()
