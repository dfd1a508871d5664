"""Coordinates dispatchers' rounds, and decides whether expired leases may be revoked. Row 1 is theirs, row 0 `write`'s."""

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import DispatchRecord


def begin_round(session: Session, gap_s: float, grace_s: float, host: str) -> bool:
    """Records a round. True: expired leases may be revoked.

    A gap of more than `gap_s` since a round ended means that the database was away, its clock jumped, or no dispatcher ran,
    so leases may have expired although their holders live. They get `grace_s` to renew first. A clock that jumped back
    counts as a gap too.
    """
    row = session.execute(
        select(DispatchRecord.round_at, DispatchRecord.reap_from, db_now()).where(DispatchRecord.id == 1)
    ).one_or_none()
    if row is None:
        now = session.scalar(select(db_now())) or 0.0
        session.add(DispatchRecord(id=1, round_at=now, reap_from=now, host=host))
        return True
    round_at, reap_from, now = row
    if not 0 <= now - round_at <= gap_s:
        reap_from = now + grace_s
    elif reap_from > now + grace_s:
        reap_from = now
    session.execute(
        update(DispatchRecord)
        .where(DispatchRecord.id == 1)
        .values(round_at=now, reap_from=reap_from, host=host)
        .execution_options(synchronize_session=False)
    )
    return now >= reap_from


def end_round(session: Session, most_s: float) -> None:
    """Records that a round of this or another dispatcher has ended, unless it began more than `most_s` seconds ago.

    Slow rounds therefore leave no gap. A database that stopped answering does.
    """
    began = DispatchRecord.round_at
    session.execute(
        update(DispatchRecord)
        .where(DispatchRecord.id == 1, began <= db_now(), began > db_now() - most_s)
        .values(round_at=db_now())
        .execution_options(synchronize_session=False)
    )


def other_host(session: Session, host: str, within_s: float) -> str | None:
    """The host of a dispatcher that ran a round in the last `within_s` seconds, if it is not `host`."""
    recent = DispatchRecord.round_at > db_now() - within_s
    return session.scalar(select(DispatchRecord.host).where(DispatchRecord.host != host, recent))


def write(session: Session) -> None:
    """Writes to the database, to see whether it can be written to: a row beside the rounds', which stays locked for long."""
    insert_into = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert_into(DispatchRecord).values(id=0, host="", round_at=0, reap_from=db_now())
    session.execute(statement.on_conflict_do_update(index_elements=[DispatchRecord.id], set_={"reap_from": db_now()}))
