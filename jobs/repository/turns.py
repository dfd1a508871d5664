"""Serialises a tenant's transactions where a count must not change before the transaction ends."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session


def take(session: Session, tenant: str) -> None:
    """Waits for the tenant's turn and holds it until the transaction ends.

    Does nothing on SQLite, where a writing transaction already has the whole database to itself.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"the turn of {tenant}", 0))))
