"""The supervisor, when something goes wrong on its own side."""

import time
from typing import Any

import pytest

from jobs.database import Database
from jobs.repository import attempts, jobs
from jobs.settings import Settings
from jobs.states import JobState
from tests.fakes import FakeQueue
from tests.integration.test_repository import FIELDS
from tests.rig.stack import ROWS, job_spec
from worker.supervisor import Supervisor


def submit(database: Database, **fields: Any) -> str:
    spec = {"dataset_id": None, "eval_dataset_id": None, "eval_dataset_path": None, **job_spec(3), **fields}
    with database.transaction() as session:
        return jobs.insert(session, {**FIELDS, "resolved_spec": spec})


def supervisor(database: Database, settings: Settings, trainer: tuple[str, ...]) -> Supervisor:
    return Supervisor(database, FakeQueue(), settings, worker="w", is_draining=lambda: False, trainer=trainer)


def test_a_supervisor_that_fails_lets_its_lease_run_out(database: Database, settings: Settings) -> None:
    """The training cannot even be started: nobody renews the lease, so the job goes back to the queue."""
    settings = settings.model_copy(update={"lease_s": 0.8, "heartbeat_s": 0.1})
    (settings.data_dir / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    job_id = submit(database)
    with pytest.raises(FileNotFoundError):
        supervisor(database, settings, ("/no/such/program",)).run_next()
    time.sleep(1)
    with database.transaction() as session:
        assert jobs.reap(session, 3) == [job_id]


def test_data_that_is_gone_fails_the_job_without_a_process(database: Database, settings: Settings) -> None:
    job_id = submit(database, dataset_path="gone.jsonl")
    assert supervisor(database, settings, ("/no/such/program",)).run_next()
    with database.transaction() as session:
        job = jobs.get(session, job_id)
        (attempt,) = attempts.of_job(session, job_id)
    assert job
    assert (job.state, job.error and job.error["code"]) == (JobState.FAILED, "data_invalid")
    assert (attempt.outcome, attempt.reason) == (
        "failed",
        "“gone.jsonl” does not exist in the data directory",
    )


def test_nothing_queued_is_nothing_done(database: Database, settings: Settings) -> None:
    assert not supervisor(database, settings, ()).run_next()
