"""Claims, fences, leases and cancels, on SQLite and on PostgreSQL."""

import threading
import time
from typing import Any

import pytest

from jobs.database import Database
from jobs.repository import comparisons, events, jobs, metrics
from jobs.repository.jobs import Fence
from jobs.states import Cause, JobState

FIELDS: dict[str, Any] = {
    "name": None,
    "method": "ipo",
    "model_name": "m",
    "dataset_id": None,
    "spec": {},
    "resolved_spec": {},
}


def submit(database: Database) -> str:
    with database.transaction() as session:
        return jobs.insert(session, FIELDS)


def claim(database: Database, lease_s: float = 60) -> Fence | None:
    with database.transaction() as session:
        job = jobs.claim_next(session, "worker", lease_s)
        return Fence(job.id, job.attempt, job.lease_token or "") if job else None


def state(database: Database, job_id: str) -> Any:
    with database.transaction() as session:
        return jobs.get(session, job_id)


def event_types(database: Database, job_id: str) -> list[str]:
    with database.transaction() as session:
        found = events.after(session, job_id, 0)
        assert [event.sequence for event in found] == list(range(1, len(found) + 1))
        return [event.type for event in found]


def test_jobs_are_claimed_oldest_first_and_once(database: Database) -> None:
    first, second = submit(database), submit(database)
    claims = [claim(database) for _ in range(3)]
    assert [c and c.job_id for c in claims] == [first, second, None]
    assert event_types(database, first) == ["queued", "claimed"]


def test_a_claim_has_one_winner(database: Database) -> None:
    ids = {submit(database) for _ in range(20)}
    won: list[str] = []

    def work() -> None:
        while fence := claim(database):
            won.append(fence.job_id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A worker may find all its candidates taken and leave early; what is left is claimed here.
    work()
    assert sorted(won) == sorted(ids)


def test_a_stale_attempt_changes_nothing(database: Database) -> None:
    job_id = submit(database)
    stale = claim(database, lease_s=0)
    assert stale
    time.sleep(0.05)
    with database.transaction() as session:
        assert jobs.reap(session, max_losses=3) == [job_id]
    fresh = claim(database)
    assert fresh
    assert fresh.attempt == 2
    before = event_types(database, job_id)
    with database.transaction() as session:
        assert not jobs.renew(session, stale, 60)
        assert not jobs.record(session, stale, "metrics", {"step": 1, "values": {}})
        assert not jobs.set_progress(session, stale, 5, 10, None)
        assert not jobs.add_warning(session, stale, {"code": "x", "message": "y"})
        assert not jobs.finish(session, stale, Cause.FINISH, {"artifact_path": "stolen"})
        assert not jobs.lose(session, stale, 3)
        assert jobs.is_cancel_requested(session, stale) is None
    job = state(database, job_id)
    assert (job.state, job.step, job.artifact_path, job.warnings) == (JobState.RUNNING, 0, None, [])
    assert event_types(database, job_id) == before
    with database.transaction() as session:
        assert jobs.finish(session, fresh, Cause.FINISH, {"artifact_path": "mine"})
    assert state(database, job_id).artifact_path == "mine"


def test_a_live_lease_is_not_reaped(database: Database) -> None:
    submit(database)
    assert claim(database, lease_s=30)
    with database.transaction() as session:
        assert jobs.reap(session, 3) == []
        assert jobs.oldest_expired_lease_s(session) == 0


def test_a_job_that_loses_every_worker_is_poisoned(database: Database) -> None:
    job_id = submit(database)
    for _ in range(3):
        assert claim(database, lease_s=0)
        time.sleep(0.05)
        with database.transaction() as session:
            jobs.reap(session, max_losses=3)
    job = state(database, job_id)
    assert (job.state, job.error["code"], job.attempt) == (JobState.FAILED, "poisoned", 3)


def test_progress_forgives_losses(database: Database) -> None:
    job_id = submit(database)
    for attempt in range(1, 6):
        fence = claim(database)
        assert fence
        with database.transaction() as session:
            assert jobs.set_progress(session, fence, attempt * 10, 100, None)
            assert jobs.lose(session, fence, max_losses=2)
    assert state(database, job_id).state == JobState.QUEUED


def test_cancel_while_queued_and_while_running(database: Database) -> None:
    queued, running = submit(database), submit(database)
    with database.transaction() as session:
        assert jobs.cancel_queued(session, queued)
        assert not jobs.cancel_queued(session, queued)
    fence = claim(database)
    assert fence
    assert fence.job_id == running
    with database.transaction() as session:
        assert not jobs.cancel_queued(session, running)
        assert jobs.request_cancel(session, running)
        assert not jobs.request_cancel(session, running)
        assert jobs.is_cancel_requested(session, fence) is True
        assert jobs.finish(session, fence, Cause.CANCEL)
        assert not jobs.request_cancel(session, running)
    assert state(database, queued).state == state(database, running).state == JobState.CANCELLED


def test_a_cancelled_job_whose_worker_died_is_cancelled_not_queued(database: Database) -> None:
    job_id = submit(database)
    assert claim(database, lease_s=0)
    with database.transaction() as session:
        assert jobs.request_cancel(session, job_id)
    time.sleep(0.05)
    with database.transaction() as session:
        assert jobs.reap(session, 3) == [job_id]
    assert state(database, job_id).state == JobState.CANCELLED


def test_metrics_are_kept_once_and_null_survives(database: Database) -> None:
    job_id = submit(database)
    with database.transaction() as session:
        metrics.add(session, job_id, 1, 10, {"loss": 0.5, "kl": None})
        metrics.add(session, job_id, 1, 10, {"loss": 9.0})
        metrics.add(session, job_id, 2, 10, {"loss": 0.4})
        metrics.add(session, job_id, 2, 11, {})
    with database.transaction() as session:
        found = [(p.name, p.attempt, p.step, p.value) for p in metrics.series(session, job_id)]
        only = metrics.series(session, job_id, ["kl"])
    assert found == [("kl", 1, 10, None), ("loss", 1, 10, 0.5), ("loss", 2, 10, 0.4)]
    assert [p.name for p in only] == ["kl"]


def test_queue_positions_and_pages(database: Database) -> None:
    ids = [submit(database) for _ in range(5)]
    claim(database)
    with database.transaction() as session:
        page = jobs.page(session, 10)
        assert [job.id for job in page] == ids[::-1]
        assert jobs.queue_positions(session, page) == {job_id: i for i, job_id in enumerate(ids[1:], start=1)}
        assert [job.id for job in jobs.page(session, 2, before=page[1].number)] == ids[2:0:-1]
        assert [job.id for job in jobs.page(session, 10, state="running")] == ids[:1]
        assert not jobs.page(session, 10, method="kto")


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_what_was_not_claimed_is_published_again(database: Database, seconds: float) -> None:
    job_id = submit(database)
    time.sleep(0.05)
    with database.transaction() as session:
        assert list(jobs.unclaimed(session, seconds)) == ([job_id] if seconds == 0 else [])


def test_a_comparison_is_answered_once(database: Database) -> None:
    job_id = submit(database)
    with database.transaction() as session:
        comparison_id = comparisons.insert(session, job_id, {"prompt": "x"})
    with database.transaction() as session:
        stale = comparisons.claim_next(session, lease_s=0)
    time.sleep(0.05)
    with database.transaction() as session:
        fresh = comparisons.claim_next(session, lease_s=60)
        assert comparisons.claim_next(session, lease_s=60) is None
    assert stale
    assert fresh
    assert stale.id == fresh.id == comparison_id
    with database.transaction() as session:
        assert not comparisons.finish(session, stale, {"answer": "stale"})
        assert comparisons.finish(session, fresh, {"answer": "fresh"})
        assert not comparisons.finish(session, fresh, {"answer": "again"})
    with database.transaction() as session:
        found = comparisons.get(session, comparison_id)
    assert found
    assert found.result == {"answer": "fresh"}


def test_a_comparison_that_loses_every_worker_fails(database: Database) -> None:
    job_id = submit(database)
    with database.transaction() as session:
        comparison_id = comparisons.insert(session, job_id, {"prompt": "x"})
    for _ in range(3):
        with database.transaction() as session:
            assert comparisons.poison(session, max_losses=3) == []
            held = comparisons.claim_next(session, lease_s=0)
            assert held
            comparisons.renew(session, held, lease_s=60)
            assert comparisons.claim_next(session, lease_s=0) is None
            comparisons.renew(session, held, lease_s=0)
        time.sleep(0.05)
    with database.transaction() as session:
        assert comparisons.poison(session, max_losses=3) == [comparison_id]
        found = comparisons.get(session, comparison_id)
        assert found
        assert found.error
        assert (found.state, found.error["code"]) == ("failed", "poisoned")


def test_migrations_make_the_tables_of_the_records(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from jobs.records import Record

    database.migrate()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Record.metadata) == []
