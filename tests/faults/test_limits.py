"""Limits that bind while a job runs: its own hours, and those of its tenant. On tables, and once on a whole service."""

from typing import Any

import pytest
from sqlalchemy import text

from api.event_words import sentence
from jobs.access import LOCAL, Caller
from jobs.database import Database
from jobs.errors import RateLimited, StateConflict
from jobs.places import install_samples
from jobs.repository import attempts, events, jobs
from jobs.repository.jobs import Fence
from jobs.service import JobService
from jobs.settings import Settings
from jobs.spec import read_spec
from jobs.states import Cause, JobState, Request
from tafdil.errors import ApiError
from tests.fakes import FakeQueue
from tests.faults.conftest import StartRig
from tests.rig.stack import job_spec, running
from tests.stack import ENOUGH_S, until
from trainer_core.errors import SpecInvalid
from worker.dispatcher import run_round
from worker.supervisor import Supervisor

HOUR_S = 3600


class Desk:
    """A service on a database, with a dispatcher and workers that are called by hand."""

    def __init__(self, database: Database, settings: Settings, **limits: Any) -> None:
        self.database, self.queue = database, FakeQueue()
        self.settings = settings.model_copy(update=limits)
        install_samples(settings)

    def service(self, tenant: str = "local") -> JobService:
        caller = LOCAL if tenant == "local" else Caller(tenant, LOCAL.scopes, 0, tenant)
        return JobService(self.database, self.queue, self.settings, caller)

    def submit(self, spec: dict[str, Any], tenant: str = "local") -> str:
        return self.service(tenant).submit(read_spec(spec), spec).id

    def claim(self) -> Fence | None:
        """As a train worker claims."""
        runner: Any = Supervisor(self.database, self.queue, self.settings, worker="w", is_draining=lambda: False)
        job = runner._claim(None)
        return Fence(job.id, job.attempt, job.lease_token) if job else None

    def run_for(self, fence: Fence, hours: float) -> None:
        """Moves the start of an attempt back by some hours."""
        with self.database.transaction() as session:
            session.execute(
                text("UPDATE attempts SET started_at = started_at - :s WHERE job_id = :job AND number = :number"),
                {"s": hours * HOUR_S, "job": fence.job_id, "number": fence.attempt},
            )

    def round(self) -> None:
        run_round(self.database, self.queue, self.settings)

    def obey(self, fence: Fence) -> None:
        """What a worker does that was asked to pause: the checkpoint is saved, the process has ended."""
        with self.database.transaction() as session:
            assert jobs.requested(session, fence) == Request.PAUSE
            assert jobs.finish(session, fence, Cause.PAUSE, {}, {"checkpoint": True, "checkpoint_step": 5})

    def last_sentences(self, job_id: str, count: int = 2) -> list[str]:
        with self.database.reading() as session:
            return [str(sentence(event.type, event.data)) for event in events.after(session, job_id, 0)][-count:]


def test_a_job_pauses_when_its_hours_are_over_and_resumes_with_more(
    database: Database, settings: Settings, spec: dict[str, Any]
) -> None:
    desk = Desk(database, settings, max_hours=5.0)
    service = desk.service()
    with pytest.raises(SpecInvalid, match="is 6; on this service a job may run for at most 5 hours") as refused:
        desk.submit({**spec, "max_hours": 6})
    assert refused.value.details[0].field == "max_hours"
    job_id, other = desk.submit({**spec, "max_hours": 2}), desk.submit(spec)
    assert service.job(other).resolved_spec["max_hours"] == 5, "the service's own limit is a default of the spec"
    fence, beside = desk.claim(), desk.claim()
    assert fence
    assert beside
    desk.run_for(fence, 1.9)
    desk.run_for(beside, 4.9)
    desk.round()
    assert (service.job(job_id).requested, service.job(other).requested) == (None, None)
    # The first attempt ends in between; its time counts all the same.
    with database.transaction() as session:
        assert jobs.lose(session, fence, 3, "x")
    fence = desk.claim()
    assert fence
    assert fence.job_id == job_id
    desk.run_for(fence, 0.2)
    desk.round()
    job = service.job(job_id)
    assert (job.requested, job.pause_reason) == (Request.PAUSE, "time_limit")
    assert service.job(other).requested is None
    desk.obey(fence)
    assert service.job(job_id).state == JobState.PAUSED
    assert service.attempts(job_id)[-1].reason == "paused: it has run for as many hours as its max_hours allows"
    asked, paused = desk.last_sentences(job_id)
    assert asked == "Pause requested: it has run for as many hours as its max_hours allows"
    assert paused.startswith("Paused, with a checkpoint at step 5: it has run")

    with pytest.raises(StateConflict, match=r"has run for 2\.1 of its 2 hours; resume it with a higher max_hours"):
        service.resume(job_id)
    with pytest.raises(StateConflict):
        service.resume(job_id, 2.05)
    with pytest.raises(SpecInvalid, match="at most 5 hours"):
        service.resume(job_id, 5.5)
    job = service.resume(job_id, 4)
    assert (job.state, job.pause_reason, job.resolved_spec["max_hours"]) == (JobState.QUEUED, None, 4)
    assert job.spec["max_hours"] == 2, "what was sent stays"
    fence = desk.claim()
    assert fence
    desk.round()
    assert service.job(job_id).requested is None
    desk.run_for(fence, 2)
    desk.round()
    assert service.job(job_id).pause_reason == "time_limit"


def test_the_smaller_limit_binds_whichever_came_later(database: Database, settings: Settings, spec: dict[str, Any]) -> None:
    desk = Desk(database, settings)
    unlimited, limited = desk.submit(spec), desk.submit({**spec, "max_hours": 9})
    held = [desk.claim(), desk.claim()]
    desk.settings.max_hours = 1.0
    for fence in held:
        assert fence
        desk.run_for(fence, 1.1)
    desk.round()
    found = [desk.service().job(job_id).pause_reason for job_id in (unlimited, limited)]
    assert found == ["time_limit", "time_limit"]


def test_hours_of_all_running_jobs_count_and_others_go_first(
    database: Database, settings: Settings, spec: dict[str, Any]
) -> None:
    """Four jobs at once, each with a quarter of the quota: none alone is over it, together they are."""
    desk = Desk(database, settings, quota_training_hours=2.0)
    mine = desk.service("a")
    held = [(desk.submit(spec, "a"), desk.claim()) for _ in range(4)]
    waiting, others = desk.submit(spec, "a"), desk.submit(spec, "b")
    for _, fence in held:
        assert fence
        desk.run_for(fence, 0.49)
    desk.round()
    assert [mine.job(job_id).requested for job_id, _ in held] == [None] * 4
    for _, fence in held:
        assert fence
        desk.run_for(fence, 0.02)
    desk.round()
    assert [mine.job(job_id).pause_reason for job_id, _ in held] == ["quota"] * 4
    for _, fence in held:
        assert fence
        desk.obey(fence)
    with pytest.raises(RateLimited, match="2 hours"):
        desk.submit(spec, "a")
    job_id = held[0][0]
    with pytest.raises(RateLimited, match="2 hours"):
        mine.resume(job_id)
    assert mine.job(job_id).state == JobState.PAUSED
    assert mine.queue_places([mine.job(waiting)])[waiting].waiting_for == "quota"
    fence = desk.claim()
    assert fence
    assert fence.job_id == others, "the jobs of those with hours left go first"
    assert desk.claim() is None
    # A month later the old attempts count no more.
    with database.transaction() as session:
        session.execute(text("UPDATE attempts SET started_at = started_at - 2600000, ended_at = ended_at - 2600000"))
    assert mine.resume(job_id).state == JobState.QUEUED
    assert mine.queue_places([mine.job(waiting)])[waiting].waiting_for == "worker"
    again = [desk.claim(), desk.claim()]
    assert {fence.job_id for fence in again if fence} == {job_id, waiting}


def test_who_asks_last_decides(database: Database, settings: Settings, spec: dict[str, Any]) -> None:
    """A cancel overtakes a limit, and a worker that dies while it pauses leaves the job paused with the reason."""
    desk = Desk(database, settings, max_hours=1.0)
    first, second = desk.submit(spec), desk.submit(spec)
    held = [desk.claim(), desk.claim()]
    for fence in held:
        assert fence
        desk.run_for(fence, 1.1)
    desk.round()
    service = desk.service()
    service.cancel(first)
    with database.transaction() as session:
        assert jobs.finish(session, held[0], Cause.PAUSE)  # type: ignore[arg-type]
        session.execute(text("UPDATE jobs SET lease_expires_at = 1 WHERE state = 'running'"))
        assert jobs.reap(session, 3) == [second]
    assert service.job(first).state == JobState.CANCELLED
    assert (service.job(second).state, service.job(second).pause_reason) == (JobState.PAUSED, "time_limit")
    assert desk.last_sentences(second, 1) == ["Paused: it has run for as many hours as its max_hours allows"]
    with database.reading() as session:
        assert attempts.outcome(session, second, 1) == Cause.PAUSE


def test_a_run_that_is_out_of_hours_is_paused_with_a_checkpoint(start_rig: StartRig) -> None:
    """On a whole service: a run of a minute that may take two seconds saves at its next step and resumes exactly."""
    rig, client = start_rig(settings={"TAFDIL_QUOTA_TRAINING_HOURS": "1"})
    lingers = {"linger_at": 1, "linger_attempts": 2}
    job_id = client.submit(job_spec(40, save_steps=100, behaviour=lingers, max_hours=2 / HOUR_S))["id"]
    job = until(lambda: found if (found := client.job(job_id))["state"] == "paused" else None)
    assert job["pause_reason"] == "time_limit"
    with pytest.raises(ApiError, match="resume it with a higher max_hours"):
        client.resume(job_id)
    client.resume(job_id, max_hours=50)
    running(client, job_id, job["checkpoint_step"] + 1)
    # An hour passes.
    with rig.database().transaction() as session:
        session.execute(text("UPDATE attempts SET started_at = started_at - 3600 WHERE ended_at IS NULL"))
    job = until(lambda: found if (found := client.job(job_id))["state"] == "paused" else None)
    assert (job["pause_reason"], job["checkpoint_step"] > 0) == ("quota", True)
    with pytest.raises(ApiError, match="1 hours of training"):
        client.resume(job_id)
    with rig.database().transaction() as session:
        session.execute(text("UPDATE attempts SET started_at = started_at + 3600 WHERE number = 2"))
    client.resume(job_id)
    assert client.wait(job_id, ENOUGH_S)["state"] == "succeeded"
    assert [line["step"] for line in rig.lines(job_id, "step")] == list(range(1, 41)), "no step twice, none lost"
    assert [each["outcome"] for each in client.attempts(job_id)] == ["paused", "paused", "succeeded"]
