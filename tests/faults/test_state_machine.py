"""Random histories of the job table: whatever order claims, renewals, expiries, requests and clock jumps come in, it holds.

The clock is the rig's own: `db_now()` reads a row that rules move, so that hours pass in no time.
"""

import os
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import delete, select, text

from benchmarks.claims import race
from jobs.database import Database
from jobs.records import AttemptRecord, DispatchRecord, EventRecord, JobRecord
from jobs.repository import attempts, dispatch, jobs
from jobs.repository.jobs import Fence
from jobs.states import Cause, JobState, Request
from tests.fakes import FakeQueue
from tests.integration.test_repository import FIELDS
from tests.rig.invariants import story_violations
from tests.servers import postgres_schema

EXAMPLES = int(os.environ.get("TAFDIL_TEST_EXAMPLES", "60"))
STEPS = int(os.environ.get("TAFDIL_TEST_STEPS", "50"))
LEASE_S, HEARTBEAT_S, DISPATCH_S, REPUBLISH_S = 60.0, 10.0, 5.0, 30.0
DEVICES = [None, "GPU-1", "GPU-2"]
CLASSES = [None, "a", "b"]
ENDS = [Cause.FINISH, Cause.FAIL, Cause.CANCEL, Cause.PAUSE, Cause.PREEMPT]


class JobTable(RuleBasedStateMachine):
    """Many workers, some of which sleep through their leases, and people who ask for things at any time."""

    database: Database
    now: float

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Fence] = []
        self.attempts: dict[str, int] = {}
        self.final: dict[str, str] = {}
        self.queue = FakeQueue()
        self.ids: list[str] = []

    @initialize()
    def begin(self) -> None:
        type(self).now = 1_000_000.0
        self._set_clock()
        with self.database.transaction() as session:
            for table in (EventRecord, AttemptRecord, JobRecord, DispatchRecord):
                session.execute(delete(table))

    def _set_clock(self) -> None:
        with self.database.transaction() as session:
            session.execute(text("UPDATE test_clock SET now = :now"), {"now": self.now})

    def _some_job(self, pick: int) -> str | None:
        return self.ids[pick % len(self.ids)] if self.ids else None

    def _some_fence(self, pick: int) -> Fence | None:
        return self.held[pick % len(self.held)] if self.held else None

    @rule(priority=st.integers(-2, 2), gpu_class=st.sampled_from(CLASSES))
    def submit(self, priority: int, gpu_class: str | None) -> None:
        with self.database.transaction() as session:
            self.ids.append(jobs.insert(session, {**FIELDS, "priority": priority, "gpu_class": gpu_class}))

    @rule(device=st.sampled_from(DEVICES), gpu_class=st.sampled_from(CLASSES))
    def claim(self, device: str | None, gpu_class: str | None) -> None:
        with self.database.transaction() as session:
            best = session.scalars(
                select(JobRecord)
                .where(JobRecord.state == JobState.QUEUED)
                .order_by(JobRecord.priority.desc(), JobRecord.number)
            ).all()
            served = [job.id for job in best if job.gpu_class in (None, gpu_class)]
            is_free = device is None or attempts.is_device_free(session, device)
        with self.database.transaction() as session:
            job = jobs.claim_next(session, "worker", LEASE_S, device, gpu_class)
        assert (job.id if job else None) == (served[0] if served and is_free else None)
        if job:
            assert job.attempt == self.attempts.get(job.id, 0) + 1
            self.attempts[job.id] = job.attempt
            self.held.append(Fence(job.id, job.attempt, job.lease_token or ""))

    def _is_current(self, session: Any, fence: Fence) -> bool:
        job = jobs.get(session, fence.job_id)
        assert job
        return job.state == JobState.RUNNING and job.attempt == fence.attempt

    @rule(pick=st.integers(0, 9))
    def heartbeat(self, pick: int) -> None:
        fence = self._some_fence(pick)
        if fence:
            with self.database.transaction() as session:
                current = self._is_current(session, fence)
                assert jobs.renew(session, fence, LEASE_S) == current
                assert (jobs.requested(session, fence) is not None) == current

    @rule(pick=st.integers(0, 9), step=st.integers(1, 50), report=st.integers(1, 5))
    def report(self, pick: int, step: int, report: int) -> None:
        fence = self._some_fence(pick)
        if fence:
            with self.database.transaction() as session:
                current = self._is_current(session, fence)
                before = jobs.get(session, fence.job_id)
                assert before
                is_new = before.reported < report
                stored = jobs.record(session, fence, "note", {"step": step}, report=report)
                assert stored == (current and is_new)
                jobs.keep_checkpoint(session, fence, step)
                assert jobs.set_progress(session, fence, step, 50, None) == current

    @rule(
        pick=st.integers(0, 9), cause=st.sampled_from([Cause.FINISH, Cause.FAIL, Cause.CANCEL, Cause.PAUSE, Cause.PREEMPT])
    )
    def end(self, pick: int, cause: Cause) -> None:
        fence = self._some_fence(pick)
        if fence:
            with self.database.transaction() as session:
                current = self._is_current(session, fence)
                assert jobs.finish(session, fence, cause) == current

    @rule(pick=st.integers(0, 9))
    def training_dies(self, pick: int) -> None:
        fence = self._some_fence(pick)
        if fence:
            with self.database.transaction() as session:
                current = self._is_current(session, fence)
                assert jobs.lose(session, fence, 3, "killed") == current

    @rule(pick=st.integers(0, 9), what=st.sampled_from(Request))
    def ask(self, pick: int, what: Request) -> None:
        job_id = self._some_job(pick)
        if job_id:
            with self.database.transaction() as session:
                if what is Request.PAUSE:
                    assert not (jobs.pause_queued(session, job_id) and jobs.request(session, job_id, what))
                else:
                    assert not (jobs.cancel_idle(session, job_id) and jobs.request(session, job_id, what))

    @rule(pick=st.integers(0, 9))
    def resume(self, pick: int) -> None:
        job_id = self._some_job(pick)
        if job_id:
            with self.database.transaction() as session:
                job = jobs.get(session, job_id)
                assert job
                was_paused = job.state == JobState.PAUSED
                assert jobs.resume(session, job_id) == was_paused

    @rule(seconds=st.sampled_from([1.0, 9.0, 31.0, 61.0, 3600.0]))
    def time_passes(self, seconds: float) -> None:
        """While dispatchers look now and then; some holders sleep through it."""
        type(self).now += seconds
        self._set_clock()

    @rule(seconds=st.sampled_from([-7200.0, -30.0, 7200.0]))
    def clock_jumps(self, seconds: float) -> None:
        type(self).now += seconds
        self._set_clock()

    @rule()
    def dispatch(self) -> None:
        self._round()

    def _round(self) -> list[str]:
        with self.database.transaction() as session:
            may_reap = dispatch.begin_round(session, DISPATCH_S + HEARTBEAT_S, HEARTBEAT_S, "host")
            jobs.shorten_leases(session, LEASE_S)
        if may_reap:
            with self.database.transaction() as session:
                expired = {
                    job.id
                    for job in session.scalars(select(JobRecord).where(JobRecord.state == JobState.RUNNING))
                    if (job.lease_expires_at or 0) < self.now
                }
                assert set(jobs.reap(session, 3)) == expired
        with self.database.transaction() as session:
            late = [job.id for job in jobs.unclaimed(session, REPUBLISH_S)]
            for job_id in late:
                jobs.mark_published(session, job_id)
        return late

    @precondition(lambda self: self.ids)
    @rule()
    def everybody_dies_and_the_rest_is_settled(self) -> None:
        """No worker lives: soon every job is queued, paused or over, and each queued one is published."""
        published: set[str] = set()
        for _ in range(25):
            type(self).now += DISPATCH_S
            self._set_clock()
            published |= set(self._round())
        with self.database.transaction() as session:
            states = {job.id: job.state for job in session.scalars(select(JobRecord))}
        assert JobState.RUNNING not in states.values()
        assert {job_id for job_id, state in states.items() if state == JobState.QUEUED} <= published

    @invariant()
    def the_table_holds(self) -> None:
        with self.database.transaction() as session:
            live = session.scalars(select(AttemptRecord).where(AttemptRecord.ended_at.is_(None))).all()
            devices = [attempt.device for attempt in live if attempt.device]
            assert len(devices) == len(set(devices)), "two live attempts on one GPU"
            assert len({attempt.job_id for attempt in live}) == len(live), "two live attempts of one job"
            events: dict[str, list[EventRecord]] = {job_id: [] for job_id in self.ids}
            for event in session.scalars(select(EventRecord).order_by(EventRecord.job_id, EventRecord.sequence)):
                events[event.job_id].append(event)
            for job in session.scalars(select(JobRecord)).all():
                assert not story_violations(job, events[job.id], session)
                assert job.attempt == self.attempts.get(job.id, 0)
                if job.id in self.final:
                    assert job.state == self.final[job.id], "a terminal state is final"
                if JobState(job.state).is_final:
                    self.final[job.id] = job.state
                assert job.losses < 3 or job.state == JobState.FAILED


@pytest.fixture(params=["sqlite", "postgresql"])
def clocked(request: pytest.FixtureRequest) -> Generator[Database]:
    """A database whose clock is a table."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite:///{Path(stack.enter_context(TemporaryDirectory())) / 'db.sqlite3'}"
        else:
            url = stack.enter_context(postgres_schema())
        database = Database(url)
        stack.callback(database.dispose)
        database.migrate()
        with database.transaction() as session:
            session.execute(text("CREATE TABLE test_clock (now DOUBLE PRECISION)"))
            session.execute(text("INSERT INTO test_clock VALUES (0)"))
        stack.enter_context(_clock_in_table())
        yield database


def _clock_in_table() -> Any:
    from contextlib import contextmanager

    from sqlalchemy.ext.compiler import compiles

    from jobs import database

    @contextmanager
    def replaced() -> Generator[None]:
        def read(element: Any, compiler: Any, **options: Any) -> str:
            return "(SELECT now FROM test_clock)"

        for dialect in ("sqlite", "postgresql"):
            compiles(database.db_now, dialect)(read)
        try:
            yield
        finally:
            compiles(database.db_now, "sqlite")(database._sqlite_now)
            compiles(database.db_now, "postgresql")(database._postgresql_now)

    return replaced()


def test_random_histories(clocked: Database) -> None:
    machine = type("Clocked", (JobTable,), {"database": clocked, "now": 0.0})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_claims_of_several_processes_have_one_winner_each(database_url: str) -> None:
    result = race(database_url, claims=1500, processes=4)
    assert (result["claims"], result["winners_twice"], result["unclaimed"]) == (1500, 0, 0)
