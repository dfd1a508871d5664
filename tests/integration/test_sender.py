"""No request waits for the broker: while it answers nothing at all, jobs and tasks are stored, and the API replies."""

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.database import Database
from jobs.records import JobRecord, TaskRecord
from jobs.repository import jobs, tasks
from jobs.settings import Settings
from jobs.states import TaskKind
from tests.api import BASE_URL, database
from tests.stack import ENOUGH_S, until

__all__ = ["database"]


class BlockedQueue:
    """A queue whose broker answers nothing until it `gives_up`, and then that it took no message."""

    def __init__(self) -> None:
        self.called, self.gives_up = threading.Event(), threading.Event()

    def _wait(self) -> bool:
        self.called.set()
        self.gives_up.wait()
        return False

    def publish_training(self, job_id: str, gpu_class: str | None = None) -> bool:
        return self._wait()

    def publish_task(self, task_id: str, kind: TaskKind) -> bool:
        return self._wait()

    def waiting(self, gpu_class: str | None) -> int:
        return int(self._wait())

    def nudge(self, subject_id: str) -> None:
        self._wait()

    def is_up(self) -> bool:
        return self._wait()


@pytest.fixture
def blocked() -> Generator[BlockedQueue]:
    queue = BlockedQueue()
    yield queue
    queue.gives_up.set()


@pytest.fixture
def client(settings: Settings, blocked: BlockedQueue, monkeypatch: pytest.MonkeyPatch) -> Generator[TestClient]:
    """Of an application that makes its own queue, as in production."""
    monkeypatch.setattr("api.app.CeleryQueue", lambda _: blocked)
    with TestClient(create_app(settings), BASE_URL) as found:
        yield found
        # Closing waits for what is being sent.
        blocked.gives_up.set()


def test_no_request_waits_for_a_broker_that_answers_nothing(
    client: TestClient, database: Database, blocked: BlockedQueue, spec: dict[str, Any]
) -> None:
    def asked() -> tuple[str, str]:
        job_id = client.post("/v1/jobs", json=spec).json()["id"]
        assert blocked.called.wait(ENOUGH_S)
        for action, state in (("pause", "paused"), ("resume", "queued")):
            assert client.post(f"/v1/jobs/{job_id}/{action}").json()["state"] == state
        dry_run = client.post("/v1/jobs/validate", params={"wait_s": 0}, json=spec)
        assert dry_run.status_code == 202
        assert [job["id"] for job in client.get("/v1/jobs").json()["jobs"]] == [job_id]
        assert client.get("/readyz").json()["ready"]
        return job_id, dry_run.json()["id"]

    def found() -> tuple[JobRecord, TaskRecord]:
        with database.reading() as session:
            job, task = jobs.get(session, job_id), tasks.get(session, task_id)
        assert job
        assert task
        return job, task

    with ThreadPoolExecutor(1) as pool:
        try:
            job_id, task_id = pool.submit(asked).result(ENOUGH_S)
            assert all(each.published_at for each in found())
        finally:
            blocked.gives_up.set()
    until(lambda: all(each.published_at is None for each in found()))
    assert {each.state for each in found()} == {"queued"}, "the dispatcher publishes them"
