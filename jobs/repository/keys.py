"""API keys."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import KeyRecord

_USE_NOTED_EVERY_S = 60


def insert(session: Session, fields: dict[str, Any], expires_in_s: float | None) -> KeyRecord:
    now = session.scalar(select(db_now())) or 0.0
    expires_at = None if expires_in_s is None else now + expires_in_s
    record = KeyRecord(id=uuid.uuid4().hex, created_at=now, expires_at=expires_at, **fields)
    session.add(record)
    session.flush()
    return record


def get(session: Session, key_id: str) -> KeyRecord | None:
    return session.scalar(select(KeyRecord).where(KeyRecord.id == key_id))


def valid(session: Session, prefix: str) -> Sequence[KeyRecord]:
    """Keys with this prefix that are neither revoked nor expired."""
    lives = or_(KeyRecord.expires_at.is_(None), KeyRecord.expires_at > db_now())
    return session.scalars(select(KeyRecord).where(KeyRecord.prefix == prefix, KeyRecord.revoked_at.is_(None), lives)).all()


def is_valid(session: Session, key_id: str) -> bool:
    """Whether a key is neither revoked nor expired."""
    lives = or_(KeyRecord.expires_at.is_(None), KeyRecord.expires_at > db_now())
    return (
        session.scalar(select(KeyRecord.id).where(KeyRecord.id == key_id, KeyRecord.revoked_at.is_(None), lives)) is not None
    )


def every(session: Session) -> Sequence[KeyRecord]:
    """All keys, newest first."""
    return session.scalars(select(KeyRecord).order_by(KeyRecord.number.desc())).all()


def revoke(session: Session, key_id: str) -> None:
    statement = update(KeyRecord).where(KeyRecord.id == key_id, KeyRecord.revoked_at.is_(None))
    session.execute(statement.values(revoked_at=db_now()).execution_options(synchronize_session=False))


def is_use_news(record: KeyRecord) -> bool:
    """Whether the key's last recorded use is old enough to update; not every request should cost a write."""
    return record.last_used_at is None or abs(time.time() - record.last_used_at) > _USE_NOTED_EVERY_S


def note_use(session: Session, key_id: str) -> None:
    statement = update(KeyRecord).where(KeyRecord.id == key_id).values(last_used_at=db_now())
    session.execute(statement.execution_options(synchronize_session=False))
