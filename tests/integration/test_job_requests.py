"""Requests that repeat, pause, resume, cancel and rerun jobs, on a real database with a fake queue."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jobs.database import Database
from jobs.repository import jobs
from jobs.repository.jobs import Fence
from jobs.states import Cause
from tests.api import client, database, error_of, queue
from tests.fakes import FakeQueue

__all__ = ["client", "database", "queue"]


def test_a_repeated_request_with_its_key_makes_one_job(client: TestClient, spec: dict[str, Any]) -> None:
    key = {"Idempotency-Key": "order-1"}
    first = client.post("/v1/jobs", json=spec, headers=key)
    again = client.post("/v1/jobs", json=dict(reversed(spec.items())), headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["Location"] == f"/v1/jobs/{first.json()['id']}"
    other = client.post("/v1/jobs", json={**spec, "beta": 0.3}, headers=key)
    assert "order-1" in error_of(other, 409, "idempotency_conflict")["message"]
    assert len(client.get("/v1/jobs").json()["jobs"]) == 1
    assert client.post("/v1/jobs", json=spec).json()["id"] != first.json()["id"]


def test_one_key_sent_twenty_times_at_once_makes_one_job(client: TestClient, spec: dict[str, Any]) -> None:
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"}), range(20)))
    assert {reply.status_code for reply in replies} == {202}
    assert len({reply.json()["id"] for reply in replies}) == 1
    assert len(client.get("/v1/jobs").json()["jobs"]) == 1


@pytest.mark.parametrize("key", ["", " ", "with space", "x" * 256, "\x7f"])
def test_a_bad_key_is_refused(client: TestClient, spec: dict[str, Any], key: str) -> None:
    error_of(client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": key}), 422, "spec_invalid")


def test_pause_resume_cancel_of_a_queued_job(client: TestClient, spec: dict[str, Any], queue: FakeQueue) -> None:
    job_id = client.post("/v1/jobs", json=spec).json()["id"]
    path = f"/v1/jobs/{job_id}"
    assert client.post(f"{path}/pause").json()["state"] == "paused"
    assert "is paused; it cannot be paused" in error_of(client.post(f"{path}/pause"), 409, "state_conflict")["message"]
    queue.runs.clear()
    resumed = client.post(f"{path}/resume").json()
    assert (resumed["state"], resumed["queue_position"]) == ("queued", 1)
    assert queue.runs == [job_id]
    error_of(client.post(f"{path}/resume"), 409, "state_conflict")
    client.post(f"{path}/pause")
    assert client.post(f"{path}/cancel", json={"save_checkpoint": True}).json()["state"] == "cancelled"
    for action in ("pause", "resume", "cancel"):
        assert "already cancelled" in error_of(client.post(f"{path}/{action}"), 409, "state_conflict")["message"]
        error_of(client.post(f"/v1/jobs/{'0' * 32}/{action}"), 404, "not_found")
    error_of(client.post(f"{path}/cancel", json={"save": True}), 422, "spec_invalid")
    assert client.get(f"{path}/attempts").json() == {"job_id": job_id, "attempts": []}


def test_requests_of_a_running_job(client: TestClient, spec: dict[str, Any], database: Database) -> None:
    job_id = client.post("/v1/jobs", json=spec).json()["id"]
    with database.transaction() as session:
        jobs.claim_next(session, "host:1", 60, device="GPU-1")
    path = f"/v1/jobs/{job_id}"
    assert client.post(f"{path}/pause").json()["requested"] == "pause"
    assert "already being paused" in error_of(client.post(f"{path}/pause"), 409, "state_conflict")["message"]
    assert client.post(f"{path}/cancel", json={"save_checkpoint": True}).json()["requested"] == "cancel_saving"
    assert client.post(f"{path}/cancel").json()["requested"] == "cancel"
    assert "already being cancelled" in error_of(client.post(f"{path}/pause"), 409, "state_conflict")["message"]
    (attempt,) = client.get(f"{path}/attempts").json()["attempts"]
    assert (attempt["number"], attempt["worker"], attempt["device"], attempt["outcome"]) == (1, "host:1", "GPU-1", None)


def test_a_rerun_is_a_new_job(client: TestClient, spec: dict[str, Any], database: Database) -> None:
    old = client.post("/v1/jobs", json={**spec, "priority": 3, "gpu_class": "a100"}).json()
    path = f"/v1/jobs/{old['id']}/rerun"
    assert "only a finished job" in error_of(client.post(path), 409, "state_conflict")["message"]
    client.post(f"/v1/jobs/{old['id']}/cancel")
    assert "no checkpoint" in error_of(client.post(path, json={"from_checkpoint": True}), 409, "state_conflict")["message"]
    reply = client.post(path, headers={"Idempotency-Key": "again"})
    new = reply.json()
    assert reply.headers["Location"] == f"/v1/jobs/{new['id']}"
    assert new["id"] != old["id"]
    assert (new["rerun_of"], new["start_from"], new["state"]) == (old["id"], None, "queued")
    assert (new["spec"], new["priority"], new["gpu_class"]) == (old["spec"], 3, "a100")
    repeated = client.post(path, json={"from_checkpoint": False}, headers={"Idempotency-Key": "again"})
    assert (repeated.status_code, repeated.json()["id"]) == (reply.status_code, new["id"])
    for other, body in ((path, {"from_checkpoint": True}), (f"/v1/jobs/{new['id']}/rerun", {}), ("/v1/jobs", spec)):
        error = error_of(client.post(other, json=body, headers={"Idempotency-Key": "again"}), 409, "idempotency_conflict")
        assert new["id"] in error["message"]
    assert len(client.get("/v1/jobs").json()["jobs"]) == 2
    with database.transaction() as session:
        job = jobs.claim_next(session, "w", 60, gpu_class="a100")
        assert job
        fence = Fence(job.id, job.attempt, job.lease_token or "")
        jobs.keep_checkpoint(session, fence, 5)
        jobs.finish(session, fence, Cause.FAIL, {"error": None})
    third = client.post(f"/v1/jobs/{new['id']}/rerun", json={"from_checkpoint": True}).json()
    assert (third["rerun_of"], third["start_from"]) == (new["id"], new["id"])
    client.post(f"/v1/jobs/{third['id']}/cancel")
    fourth = client.post(f"/v1/jobs/{third['id']}/rerun", json={"from_checkpoint": True}).json()
    assert (fourth["rerun_of"], fourth["start_from"]) == (third["id"], new["id"]), "the checkpoint is still the first one's"
