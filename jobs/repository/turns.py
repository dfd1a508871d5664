"""One transaction of a tenant's at a time, where what it counts must not change before it ends."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session


def take(session: Session, tenant: str) -> None:
    """Waits until no other transaction has the tenant's turn, which ends with the transaction.

    On SQLite a transaction that writes has the whole database to itself already.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"the turn of {tenant}", 0))))
