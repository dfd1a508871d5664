"""Uploaded datasets."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import DatasetRecord


def insert(session: Session, fields: dict[str, Any]) -> None:
    session.add(DatasetRecord(created_at=session.scalar(select(db_now())), **fields))


def get(session: Session, dataset_id: str) -> DatasetRecord | None:
    return session.scalar(select(DatasetRecord).where(DatasetRecord.id == dataset_id))


def page(session: Session, limit: int, before: int | None = None) -> Sequence[DatasetRecord]:
    """Datasets, newest first, below the number `before`."""
    query = select(DatasetRecord).order_by(DatasetRecord.number.desc()).limit(limit)
    if before is not None:
        query = query.where(DatasetRecord.number < before)
    return session.scalars(query).all()
