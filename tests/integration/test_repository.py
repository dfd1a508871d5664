"""Claims, fences, leases and cancels, on SQLite and on PostgreSQL."""

import threading
import time
from typing import Any

import pytest
from sqlalchemy import select, update

from jobs.database import Database, db_now
from jobs.records import DispatchRecord, JobRecord, TaskRecord
from jobs.repository import attempts, dispatch, events, jobs, metrics, tasks, watch
from jobs.repository.jobs import Fence
from jobs.settings import Settings
from jobs.states import Cause, JobState, Request, TaskKind
from tests.fakes import FakeQueue
from worker.dispatcher import run_round

ASKED = [TaskKind.COMPARE]
FIELDS: dict[str, Any] = {
    "tenant": "default",
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
        assert not jobs.lose(session, stale, 3, "x")
        assert jobs.requested(session, stale) is None
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
        assert watch.oldest_expired_lease_s(session) == 0


def test_a_job_that_loses_every_worker_is_poisoned(database: Database) -> None:
    job_id = submit(database)
    for _ in range(3):
        assert claim(database, lease_s=0)
        time.sleep(0.05)
        with database.transaction() as session:
            jobs.reap(session, max_losses=3)
    job = state(database, job_id)
    assert (job.state, job.error["code"], job.attempt) == (JobState.FAILED, "poisoned", 3)


def test_only_a_new_checkpoint_forgives_losses(database: Database) -> None:
    job_id = submit(database)
    for attempt in range(1, 6):
        fence = claim(database)
        assert fence
        with database.transaction() as session:
            jobs.keep_checkpoint(session, fence, attempt * 10)
            assert jobs.lose(session, fence, 2, "x")
    assert (state(database, job_id).state, state(database, job_id).losses) == (JobState.QUEUED, 1)
    fence = claim(database)
    assert fence
    with database.transaction() as session:
        assert jobs.set_progress(session, fence, 90, 100, None)
        jobs.keep_checkpoint(session, fence, 50)
        assert jobs.lose(session, fence, 2, "gone")
    job = state(database, job_id)
    assert (job.state, job.error["code"]) == (JobState.FAILED, "poisoned")
    assert "beyond step 50; the last one: gone" in job.error["message"]


def test_the_pause_doubles_with_each_loss(database: Database) -> None:
    submit(database)
    with database.transaction() as session:
        tasks.insert(session, TaskKind.PREVIEW, "default", {})
    for pause_s in (1000, 2000):
        fence = claim(database)
        assert fence
        with database.transaction() as session:
            task = tasks.claim_next(session, [TaskKind.PREVIEW], 60)
            assert task
            began = session.scalar(select(db_now()))
            assert jobs.lose(session, fence, 3, "x", pause_s=1000)
            assert tasks.lose(session, task, 3, "x", pause_s=1000)
        with database.transaction() as session:
            for record in (JobRecord, TaskRecord):
                (not_before,) = session.scalars(select(record.not_before))
                assert pause_s <= not_before - began < pause_s + 500
                session.execute(update(record).values(not_before=None))


def test_cancel_while_queued_and_while_running(database: Database) -> None:
    queued, running = submit(database), submit(database)
    with database.transaction() as session:
        assert jobs.cancel_idle(session, queued)
        assert not jobs.cancel_idle(session, queued)
    fence = claim(database)
    assert fence
    assert fence.job_id == running
    with database.transaction() as session:
        assert not jobs.cancel_idle(session, running)
        assert jobs.requested(session, fence) == ""
        assert jobs.request(session, running, Request.CANCEL)
        assert not jobs.request(session, running, Request.CANCEL)
        assert jobs.requested(session, fence) == Request.CANCEL
        assert jobs.finish(session, fence, Cause.CANCEL)
        assert not jobs.request(session, running, Request.CANCEL)
    assert state(database, queued).state == state(database, running).state == JobState.CANCELLED


def test_a_cancelled_job_whose_worker_died_is_cancelled_not_queued(database: Database) -> None:
    job_id = submit(database)
    assert claim(database, lease_s=0)
    with database.transaction() as session:
        assert jobs.request(session, job_id, Request.CANCEL)
    time.sleep(0.05)
    with database.transaction() as session:
        assert jobs.reap(session, 3) == [job_id]
    assert state(database, job_id).state == JobState.CANCELLED


def test_a_pausing_job_whose_worker_died_is_paused(database: Database) -> None:
    job_id = submit(database)
    fence = claim(database)
    assert fence
    with database.transaction() as session:
        assert jobs.request(session, job_id, Request.PAUSE)
        assert jobs.lose(session, fence, 1, "x")
    assert state(database, job_id).state == JobState.PAUSED
    with database.transaction() as session:
        assert jobs.resume(session, job_id)
        assert not jobs.resume(session, job_id)
    assert [each.outcome for each in tries(database, job_id)] == ["paused"], "what ended an attempt stays"
    again = claim(database)
    assert again
    with database.transaction() as session:
        assert jobs.requested(session, again) == "", "a request is of the attempt that it was made to"


def test_a_later_request_overtakes_a_milder_one(database: Database) -> None:
    job_id = submit(database)
    assert claim(database)
    order = [Request.PAUSE, Request.CANCEL_SAVING, Request.CANCEL]
    for number, request in enumerate(order):
        with database.transaction() as session:
            assert jobs.request(session, job_id, request)
            assert not any(jobs.request(session, job_id, milder) for milder in order[: number + 1])
    assert event_types(database, job_id)[2:] == ["pause_requested", "cancel_requested", "cancel_requested"]


def test_a_queued_job_is_paused_and_resumed_at_its_place(database: Database) -> None:
    first, second = submit(database), submit(database)
    with database.transaction() as session:
        assert jobs.pause_queued(session, first)
        assert not jobs.pause_queued(session, first)
    fence = claim(database)
    assert fence
    assert fence.job_id == second
    third = submit(database)
    with database.transaction() as session:
        assert jobs.resume(session, first)
        assert jobs.queue_positions(session, jobs.page(session, "default", 10)) == {None: {first: 1, third: 2}}
    paused = submit(database)
    with database.transaction() as session:
        assert jobs.pause_queued(session, paused)
        assert jobs.cancel_idle(session, paused)


def test_priority_and_class_decide_who_claims_what(database: Database) -> None:
    def put(**fields: Any) -> str:
        with database.transaction() as session:
            return jobs.insert(session, {**FIELDS, **fields})

    def take(gpu_class: str | None) -> str | None:
        with database.transaction() as session:
            job = jobs.claim_next(session, "worker", 60, gpu_class=gpu_class)
            return job and job.id

    plain, a100, urgent_h100, urgent = put(), put(gpu_class="a100"), put(gpu_class="h100", priority=9), put(priority=5)
    with database.transaction() as session:
        positions = jobs.queue_positions(session, jobs.page(session, "default", 10))
    assert positions == {None: {plain: 2, urgent: 1}, "a100": {a100: 3}, "h100": {urgent_h100: 1}}
    assert take("a100") == urgent
    assert take("a100") == plain
    assert take(None) is None
    assert take("h100") == urgent_h100
    assert take("a100") == a100


def test_a_gpu_has_one_live_attempt(database: Database) -> None:
    ids = [submit(database) for _ in range(3)]

    def take(device: str) -> Any:
        with database.transaction() as session:
            return jobs.claim_next(session, "worker", 60, device=device)

    first = take("GPU-1")
    assert take("GPU-1") is None
    assert take("GPU-2").id == ids[1]
    with database.transaction() as session:
        assert jobs.finish(session, Fence(first.id, first.attempt, first.lease_token), Cause.PREEMPT)
    assert take("GPU-1").id == ids[0]
    found = tries(database, ids[0])
    assert [(a.number, a.device, a.outcome, a.ended_at is None) for a in found] == [
        (1, "GPU-1", "preempted", False),
        (2, "GPU-1", None, True),
    ]


def test_two_claims_of_one_gpu_at_once_have_one_winner(database: Database) -> None:
    for _ in range(8):
        submit(database)
    won: list[str] = []
    barrier = threading.Barrier(4)

    def take() -> None:
        barrier.wait()
        with database.transaction() as session:
            job = jobs.claim_next(session, "worker", 60, device="GPU-1")
        if job:
            won.append(job.id)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    with database.transaction() as session:
        assert len([job for job in jobs.page(session, "default", 10) if job.state == JobState.RUNNING]) == 1


def tries(database: Database, job_id: str) -> Any:
    with database.transaction() as session:
        return attempts.of_job(session, job_id)


def test_an_attempt_tells_where_it_began_and_ended(database: Database) -> None:
    job_id = submit(database)
    fence = claim(database)
    assert fence
    with database.transaction() as session:
        assert jobs.set_first_step(session, fence, 5)
        assert jobs.set_first_step(session, fence, 6)
        assert jobs.set_progress(session, fence, 9, 10, None)
        assert jobs.lose(session, fence, 3, "killed")
        assert not jobs.set_first_step(session, fence, 7)
    (found,) = tries(database, job_id)
    assert (found.first_step, found.last_step, found.outcome, found.reason) == (5, 9, "worker_lost", "killed")


def test_a_report_is_stored_once(database: Database) -> None:
    job_id = submit(database)
    fence = claim(database)
    assert fence
    with database.transaction() as session:
        assert jobs.record(session, fence, "metrics", {"step": 1}, report=1)
        assert not jobs.record(session, fence, "metrics", {"step": 1}, report=1)
        assert jobs.record(session, fence, "metrics", {"step": 2}, report=2)
        assert jobs.add_warning(session, fence, {"code": "x", "message": "y"}, report=3)
        assert jobs.lose(session, fence, 3, "x")
    again = claim(database)
    assert again
    with database.transaction() as session:
        assert jobs.record(session, again, "metrics", {"step": 1}, report=1), "numbers start anew with an attempt"
    assert event_types(database, job_id).count("metrics") == 3


def test_after_an_absence_leases_may_be_renewed_before_they_are_taken_back(database: Database) -> None:
    def look(after_s: float = 0.0) -> bool:
        """A round `after_s` later: the record's times move back, since a sleep may last longer than it should."""
        with database.transaction() as session:
            session.execute(
                update(DispatchRecord).values(
                    round_at=DispatchRecord.round_at - after_s, reap_from=DispatchRecord.reap_from - after_s
                )
            )
            return dispatch.begin_round(session, gap_s=3000, grace_s=3000, host="a")

    assert look()
    assert look()
    assert not look(after_s=5000)
    assert not look()
    assert not look(after_s=2000)
    assert look(after_s=2000)


def test_a_round_that_takes_long_is_no_absence_unless_the_database_stood_still(database: Database) -> None:
    def rounds(lasting_s: float) -> bool:
        """Whether the round after one of this length may revoke leases."""
        with database.transaction() as session:
            dispatch.begin_round(session, gap_s=30, grace_s=3000, host="a")
            session.execute(update(DispatchRecord).values(round_at=DispatchRecord.round_at - lasting_s))
            dispatch.end_round(session, most_s=1000)
            return dispatch.begin_round(session, gap_s=30, grace_s=3000, host="a")

    assert rounds(lasting_s=600)
    assert not rounds(lasting_s=1200)


def test_a_lease_of_a_clock_that_jumped_back_is_shortened(database: Database) -> None:
    job_id = submit(database)
    assert claim(database, lease_s=7200)
    with database.transaction() as session:
        jobs.shorten_leases(session, 60)
        now = session.scalar(select(db_now()))
    assert state(database, job_id).lease_expires_at <= now + 60


def test_another_host_is_noticed(database: Database) -> None:
    with database.transaction() as session:
        dispatch.begin_round(session, 5, 5, "one")
        assert dispatch.other_host(session, "one", 60) is None
        assert dispatch.other_host(session, "two", 60) == "one"
        assert dispatch.other_host(session, "two", -1) is None


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
        page = jobs.page(session, "default", 10)
        assert [job.id for job in page] == ids[::-1]
        assert jobs.queue_positions(session, page) == {None: {job_id: i for i, job_id in enumerate(ids[1:], start=1)}}
        assert [job.id for job in jobs.page(session, "default", 2, before=page[1].number)] == ids[2:0:-1]
        assert [job.id for job in jobs.page(session, "default", 10, state="running")] == ids[:1]
        assert not jobs.page(session, "default", 10, method="kto")


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_what_was_not_claimed_is_published_again(database: Database, seconds: float) -> None:
    job_id = submit(database)
    time.sleep(0.05)
    with database.transaction() as session:
        assert [job.id for job in jobs.unclaimed(session, seconds)] == ([job_id] if seconds == 0 else [])


def test_a_comparison_is_answered_once(database: Database) -> None:
    job_id = submit(database)
    with database.transaction() as session:
        comparison_id = tasks.insert(session, TaskKind.COMPARE, "default", {"prompt": "x"}, job_id)
    with database.transaction() as session:
        stale = tasks.claim_next(session, ASKED, lease_s=0)
    time.sleep(0.05)
    with database.transaction() as session:
        assert tasks.claim_next(session, ASKED, lease_s=60) is None, "only a dispatcher takes a lease back"
        assert tasks.reap(session, max_losses=3) == [comparison_id]
        fresh = tasks.claim_next(session, ASKED, lease_s=60)
        assert tasks.claim_next(session, ASKED, lease_s=60) is None
    assert stale
    assert fresh
    assert stale.id == fresh.id == comparison_id
    with database.transaction() as session:
        assert not tasks.finish(session, stale, {"answer": "stale"})
        assert tasks.finish(session, fresh, {"answer": "fresh"})
        assert not tasks.finish(session, fresh, {"answer": "again"})
    with database.transaction() as session:
        found = tasks.get(session, comparison_id)
    assert found
    assert found.result == {"answer": "fresh"}


def test_a_comparison_that_loses_every_worker_fails(database: Database) -> None:
    job_id = submit(database)
    with database.transaction() as session:
        comparison_id = tasks.insert(session, TaskKind.COMPARE, "default", {"prompt": "x"}, job_id)
    for left in (2, 1, 0):
        with database.transaction() as session:
            held = tasks.claim_next(session, ASKED, lease_s=0)
            assert held
            tasks.renew(session, held, lease_s=60)
        with database.transaction() as session:
            assert tasks.reap(session, max_losses=3) == []
            assert tasks.claim_next(session, ASKED, lease_s=0) is None
            tasks.renew(session, held, lease_s=0)
        time.sleep(0.05)
        with database.transaction() as session:
            assert tasks.reap(session, max_losses=3) == [comparison_id]
            assert [task_id for task_id, _ in tasks.unclaimed(session, 0)] == ([comparison_id] if left else [])
    with database.transaction() as session:
        assert tasks.claim_next(session, ASKED, lease_s=0) is None
        found = tasks.get(session, comparison_id)
        assert found
        assert found.error
        assert (found.state, found.error["code"]) == ("failed", "poisoned")


def test_as_many_messages_wait_as_jobs_and_no_more(database: Database, settings: Settings) -> None:
    queue = FakeQueue()
    for _ in range(3):
        submit(database)
    settings = settings.model_copy(update={"republish_s": 0.0})
    for waiting, published in ((0, 3), (2, 1), (3, 0), (9, 0)):
        queue.runs.clear()
        queue.waiting = lambda _, waiting=waiting: waiting  # type: ignore[method-assign]
        time.sleep(0.02)
        run_round(database, queue, settings)
        assert len(queue.runs) == published


def test_a_broker_that_is_down_is_asked_once_a_round(database: Database, settings: Settings) -> None:
    queue = FakeQueue()
    queue.is_broken = True
    ids = [submit(database) for _ in range(3)]
    settings = settings.model_copy(update={"republish_s": 0.0})
    time.sleep(0.02)
    run_round(database, queue, settings)
    queue.is_broken = False
    run_round(database, queue, settings)
    assert queue.runs == ids
