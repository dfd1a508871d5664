"""Sixty kills at random, and the checker that looks at what they did. `python -m benchmarks.chaos` runs longer."""

import random
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from benchmarks.chaos import parse, run
from jobs.database import Database
from jobs.records import AttemptRecord, EventRecord, JobRecord, MetricRecord
from jobs.repository import jobs, metrics
from jobs.repository.jobs import Fence
from jobs.states import Cause
from tests.integration.test_repository import FIELDS
from tests.rig import history
from tests.rig.invariants import violations
from tests.rig.trainer import state_after


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_thirty_kills_on_each_database(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.SystemRandom().randrange(2**31)
    well = run(parse(["--kills", "30", "--database", database, "--seed", str(seed), "--workers", "3", "--pause-s", "0.35"]))
    assert well, capsys.readouterr().out


def _story(database: Database) -> tuple[str, list[dict[str, Any]]]:
    """A job of five steps that went well, and what its training noted."""
    with database.transaction() as session:
        job_id = jobs.insert(session, {**FIELDS, "resolved_spec": {"max_steps": 5}})
        job = jobs.claim_next(session, "w", 60)
        assert job
        fence = Fence(job_id, 1, job.lease_token or "")
        jobs.record(session, fence, "metrics", {"step": 1, "values": {"loss": 1.0}}, report=1)
        metrics.add(session, job_id, 1, 1, {"loss": 1.0})
        jobs.finish(session, fence, Cause.FINISH, {"metadata_": {"state": state_after(5)}})
    noted = {"job": job_id, "attempt": 1, "pid": 1}
    return job_id, [{**noted, "at": 1.0, "what": "start"}, {**noted, "at": 2.0, "what": "finished"}]


def _found(database: Database, lines: list[dict[str, Any]]) -> set[str]:
    with database.transaction() as session:
        return {kind for kind, problems in violations(session, lines).items() if problems}


def test_the_checker_finds_what_is_wrong(database: Database) -> None:
    """Each kind of harm, done to a story that was whole, is found."""
    job_id, lines = _story(database)
    assert _found(database, lines) == set()
    assert _found(database, [*lines, {"job": "x", "what": "accepted", "at": 0.0, "pid": 1}]) == {"lost"}
    other = {"job": job_id, "attempt": 2, "pid": 2, "what": "step"}
    assert _found(database, [*lines, {**other, "at": 1.5}]) == {"double_run"}
    stopped = {"what": "sigstop", "training": 2, "at": 1.2, "pid": 9}
    assert _found(database, [*lines, stopped, {**other, "at": 1.5}]) == set(), "a stopped one that wakes is fenced"
    assert _found(database, lines[:1]) == {"lost"}

    def harmed(statement: Any) -> set[str]:
        session = database._sessions()
        try:
            session.execute(statement)
            return {kind for kind, problems in violations(session, lines).items() if problems}
        finally:
            session.rollback()
            session.close()

    assert harmed(update(JobRecord).values(state="running")) == {"illegal", "stuck"}
    assert harmed(update(JobRecord).values(metadata_={"state": state_after(4)})) == {"lost"}
    assert harmed(update(JobRecord).values(lease_token="x")) == {"illegal"}
    assert harmed(update(AttemptRecord).values(ended_at=None)) == {"illegal"}
    assert harmed(update(JobRecord).values(attempt=2)) == {"illegal"}
    claimed = update(EventRecord).where(EventRecord.type == "metrics")
    assert harmed(claimed.values(type="claimed")) == {"illegal"}
    assert harmed(claimed.values(type="succeeded", data={"attempt": 1})) == {"illegal", "double_published"}
    assert harmed(claimed.values(sequence=9)) == {"illegal"}
    assert harmed(update(MetricRecord).values(step=7)) == {"illegal"}


def test_the_history_is_appended_by_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(history.VARIABLE, str(tmp_path / "h"))
    for step in range(3):
        history.note("step", job="a", attempt=1, step=step)
    assert [line["step"] for line in history.read(tmp_path / "h")] == [0, 1, 2]
    ((attempt, first, last),) = history.lifetimes(history.read(tmp_path / "h"))["a"]
    assert (attempt, first <= last) == (1, True)
