"""Migrations, on SQLite and PostgreSQL."""

import time

from sqlalchemy import text

from jobs.database import Database
from jobs.repository import jobs, tasks
from jobs.states import TaskKind
from tests.integration.test_repository import FIELDS


def test_migrations_make_the_tables_of_the_records(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from jobs.records import Record

    database.migrate()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Record.metadata) == []


def test_jobs_and_answers_of_before_are_the_default_tenants(database_url: str) -> None:
    old = Database(database_url)
    old.migrate("0003")
    now = {"now": time.time()}
    with old.transaction() as session:
        for number in (1, 2):
            session.execute(
                text(
                    "INSERT INTO jobs (id, method, model_name, spec, resolved_spec, state, step, warnings, attempt, losses, "
                    "checkpoint_step, event_count, created_at, idempotency_key) VALUES "
                    "(:id, 'ipo', 'm', '{}', '{}', 'queued', 0, '[]', 0, 0, 0, 1, :now, :id)"
                ),
                {**now, "id": str(number)},
            )
        session.execute(
            text(
                "INSERT INTO comparisons (id, job_id, request, state, attempt, created_at) VALUES "
                "('c', '1', '{}', 'succeeded', 1, :now)"
            ),
            now,
        )
    old.migrate()
    with old.transaction() as session:
        assert [(job.id, job.turn) for job in jobs.page(session, "default", 9)] == [("2", 2), ("1", 1)]
        assert [task.id for task in tasks.of_job(session, "1", TaskKind.COMPARE, 9)] == ["c"]
        tasks.insert(session, TaskKind.COMPARE, "default", {}, "1")
        jobs.insert(session, FIELDS)
    with old.transaction() as session:
        assert len(tasks.of_job(session, "1", TaskKind.COMPARE, 9)) == 2
        claimed = jobs.claim_next(session, "worker", 60)
        assert claimed
        assert claimed.id == "1"
    old.dispose()
