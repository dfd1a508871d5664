"""The API in this process, on a real database and with a fake queue, for the tests that import these fixtures."""

from collections.abc import Generator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.database import Database
from jobs.repository import jobs
from jobs.repository.jobs import Fence
from jobs.settings import Settings
from tests.fakes import FakeQueue
from trainer_core.errors import CODES

BASE_URL = "http://127.0.0.1:8000"


@pytest.fixture
def queue() -> FakeQueue:
    return FakeQueue()


@pytest.fixture
def client(settings: Settings, queue: FakeQueue) -> Generator[TestClient]:
    with TestClient(create_app(settings, queue), BASE_URL, raise_server_exceptions=False) as found:
        yield found


@pytest.fixture
def database(client: TestClient) -> Database:
    return client.app.state.service.database  # type: ignore[attr-defined]


def error_of(response: Any, status: int, code: str) -> dict[str, Any]:
    """The error of a reply, after checking that it has the one shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) >= {"code", "message", "hint", "retryable", "user_fault", "details"}
    assert error["code"] == code
    assert error["hint"] == CODES[code].hint
    assert "Traceback" not in response.text
    return error


def run(database: Database, client: TestClient, spec: dict[str, Any]) -> Fence:
    client.post("/v1/jobs", json=spec)
    with database.transaction() as session:
        job = jobs.claim_next(session, "worker", 60)
        assert job
        return Fence(job.id, job.attempt, job.lease_token or "")
