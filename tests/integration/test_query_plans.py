"""Every read goes by an index, so that its time does not grow with the table. On SQLite and PostgreSQL."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, text

from jobs.database import Database
from jobs.repository import events, jobs, watch
from jobs.service import JobService
from jobs.settings import Settings
from jobs.states import Cause
from tests.fakes import FakeQueue
from tests.integration.test_repository import FIELDS
from trainer_core.config import HEADLINE


def statements_of(database: Database, read: Callable[[], Any]) -> list[tuple[str, Any]]:
    """The queries of a read, with their parameters."""
    found: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "SELECT" in statement and "FROM" in statement:
            found.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        read()
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    return found


def whole_scans(database: Database, statement: str, parameters: Any) -> list[str]:
    """The steps of a query's plan that read or sort a whole table."""
    is_postgres = database.engine.dialect.name == "postgresql"
    with database.engine.connect() as connection:
        if is_postgres:
            # With few rows a scan is cheapest; forbidden, it stays only where no index would do.
            connection.execute(text("SET LOCAL enable_seqscan = off"))
            connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        explain = "EXPLAIN " if is_postgres else "EXPLAIN QUERY PLAN "
        lines = [str(row[-1]) for row in connection.exec_driver_sql(explain + statement, parameters)]
    bad = ("Seq Scan",) if is_postgres else ("TEMP B-TREE",)
    found = [line for line in lines if any(part in line for part in bad)]
    if not is_postgres:
        # Along the primary key, and no further than the page: that is how the newest are found.
        is_page = "LIMIT" in statement and "WHERE" not in statement
        tables = ("jobs", "attempts", "job_events", "metric_points", "comparisons")
        whole = [line for line in lines if line.startswith("SCAN") and line.split()[1] in tables and "USING" not in line]
        found += [] if is_page else whole
    return found


@pytest.fixture
def service(database: Database, settings: Settings) -> JobService:
    return JobService(database, FakeQueue(), settings)


@pytest.fixture
def job_id(database: Database) -> str:
    """A running job, among others in every state."""
    with database.transaction() as session:
        for number in range(60):
            found = jobs.insert(session, {**FIELDS, "method": HEADLINE[number % len(HEADLINE)], "priority": number % 2})
            if number % 4 == 0:
                jobs.cancel_idle(session, found)
        claimed = jobs.claim_next(session, "worker", 60)
        assert claimed is not None
        jobs.finish(session, jobs.Fence(claimed.id, 1, str(claimed.lease_token)), Cause.FINISH, {"artifact_path": "x"})
        running = jobs.claim_next(session, "worker", 60)
        assert running is not None
        found = running.id
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    return found


def test_no_read_scans_a_table(database: Database, service: JobService, job_id: str) -> None:
    def read_events() -> None:
        with database.reading() as session:
            events.after(session, job_id, 0)

    def read_effects() -> None:
        with database.reading() as session:
            watch.effects(session)

    reads: dict[str, Callable[[], Any]] = {
        "list": lambda: service.jobs(50),
        "a page further down": lambda: service.jobs(50, job_id),
        "by state": lambda: service.jobs(50, None, "queued"),
        "by method": lambda: service.jobs(50, None, None, "ipo"),
        "by state and method": lambda: service.jobs(50, job_id, "cancelled", "ipo"),
        "places in the queue": lambda: service.queue_places(service.jobs(50, None, "queued")),
        "status": lambda: service.job(job_id),
        "attempts": lambda: service.attempts(job_id),
        "metrics": lambda: service.metrics(job_id, ["loss"]),
        "all metrics": lambda: service.metrics(job_id, only_current=True, max_points=100),
        "events": read_events,
        "effects": read_effects,
    }
    for name, read in reads.items():
        found = statements_of(database, read)
        assert found, name
        for statement, parameters in found:
            assert not whole_scans(database, statement, parameters), (name, statement)


def test_a_scan_is_noticed(database: Database, job_id: str) -> None:
    """No index has this column."""
    assert whole_scans(database, "SELECT id FROM jobs WHERE total_steps = 1", ())
