"""Signs of life of workers and dispatchers, and what each of them has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import SignRecord

# A part that has been silent for an hour was removed, not interrupted.
_FORGOTTEN_S = 3600.0


@dataclass(frozen=True)
class Part:
    """A process of the service, and how long ago it last gave a sign of life."""

    name: str
    kind: str
    host: str
    silent_s: float


def give(session: Session, name: str, host: str, fields: dict[str, Any]) -> None:
    """Records a sign of life of a part, with its kind and what it has."""
    is_it = (SignRecord.name == name) & (SignRecord.host == host)
    values = {**fields, "seen_at": db_now()}
    known = session.execute(update(SignRecord).where(is_it).values(**values).returning(SignRecord.name))
    if known.one_or_none() is None:
        session.add(SignRecord(name=name, host=host, **{**values, "seen_at": session.scalar(select(db_now()))}))


def end(session: Session, name: str, host: str) -> None:
    """Forgets a part that ends as it should."""
    session.execute(delete(SignRecord).where(SignRecord.name == name, SignRecord.host == host))


def forget(session: Session) -> None:
    """Forgets the parts that have been silent for an hour."""
    session.execute(delete(SignRecord).where(SignRecord.seen_at < db_now() - _FORGOTTEN_S))


def parts(session: Session) -> list[Part]:
    """All known parts, by kind and name."""
    query = select(SignRecord.name, SignRecord.kind, SignRecord.host, db_now() - SignRecord.seen_at)
    rows = session.execute(query.order_by(SignRecord.kind, SignRecord.name, SignRecord.host))
    # Below zero where the clock jumped back.
    return [Part(row[0], row[1], row[2], max(0.0, row[3])) for row in rows]


def trackers(session: Session, gpu_class: str | None) -> set[str] | None:
    """The trackers that at least one train worker for jobs of a class has. None: no such worker is known."""
    query = select(SignRecord.trackers).where(SignRecord.kind == "train")
    if gpu_class is not None:
        query = query.where(SignRecord.gpu_class == gpu_class)
    found = session.scalars(query).all()
    return {name for names in found for name in names} if found else None


def devices(session: Session, kind: str) -> Sequence[str | None]:
    """The device of each known part of a kind."""
    return session.scalars(select(SignRecord.device).where(SignRecord.kind == kind)).all()
