"""Coordinates dispatchers' rounds, and decides whether expired leases may be revoked."""

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs.database import db_now
from jobs.records import DispatchRecord


def begin_round(session: Session, gap_s: float, grace_s: float, host: str) -> bool:
    """Records a round. True: expired leases may be revoked.

    A gap of more than `gap_s` between rounds means that the database was away, its clock jumped, or no dispatcher ran, so
    leases may have expired although their holders live. They get `grace_s` to renew first. A clock that jumped back counts
    as a gap too.
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


def other_host(session: Session, host: str, within_s: float) -> str | None:
    """The host of a dispatcher that ran a round in the last `within_s` seconds, if it is not `host`."""
    recent = DispatchRecord.round_at > db_now() - within_s
    return session.scalar(select(DispatchRecord.host).where(DispatchRecord.host != host, recent))


def check_writable(session: Session) -> None:
    """Writes nothing, by a statement that a database refuses if it takes no writes."""
    session.execute(update(DispatchRecord).where(DispatchRecord.id == 0).values(host=""))
