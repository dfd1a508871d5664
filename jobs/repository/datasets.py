"""Uploaded datasets."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete as sql_delete
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import DatasetRecord


def insert(session: Session, fields: dict[str, Any]) -> None:
    session.add(DatasetRecord(created_at=session.scalar(select(db_now())), **fields))


def owned(session: Session, tenant: str, dataset_id: str) -> DatasetRecord | None:
    """A dataset of the tenant's."""
    return session.scalar(select(DatasetRecord).where(DatasetRecord.id == dataset_id, DatasetRecord.tenant == tenant))


def held(session: Session, tenant: str, dataset_id: str) -> bool:
    """Whether the tenant has a dataset, which nobody can delete before the end of this transaction."""
    query = select(DatasetRecord.id).where(DatasetRecord.id == dataset_id, DatasetRecord.tenant == tenant)
    return session.scalar(query.with_for_update(read=True)) is not None


def lock(session: Session, dataset_id: str) -> None:
    """Before a dataset is deleted: waits for jobs that are being stored with it, and lets no further one be stored."""
    session.execute(select(DatasetRecord.id).where(DatasetRecord.id == dataset_id).with_for_update())


def delete(session: Session, dataset_id: str) -> None:
    session.execute(sql_delete(DatasetRecord).where(DatasetRecord.id == dataset_id))


def total_bytes(session: Session, tenant: str) -> int:
    """The size of all datasets of a tenant."""
    return session.scalar(select(func.sum(DatasetRecord.size_bytes)).where(DatasetRecord.tenant == tenant)) or 0


def page(session: Session, tenant: str, limit: int, before: int | None = None) -> Sequence[DatasetRecord]:
    """Datasets of a tenant, newest first, below the number `before`."""
    query = select(DatasetRecord).where(DatasetRecord.tenant == tenant).order_by(DatasetRecord.number.desc()).limit(limit)
    if before is not None:
        query = query.where(DatasetRecord.number < before)
    return session.scalars(query).all()
