"""Runs migrations on the engine that `jobs.database.Database.migrate` hands over."""

from alembic import context
from sqlalchemy import text

from jobs.records import Record

# Several processes start at once; on PostgreSQL one migrates and the others wait. SQLite's write lock does the same.
_LOCK = 7_205_759


def run() -> None:
    engine = context.config.attributes["engine"]
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        context.configure(connection=connection, target_metadata=Record.metadata, transactional_ddl=True)
        context.run_migrations()
        connection.commit()


run()
