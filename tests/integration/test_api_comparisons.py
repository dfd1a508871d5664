"""Comparisons and curves over HTTP: asked for, told while they grow, and thinned."""

import json
import threading
from typing import Any

from fastapi.testclient import TestClient

from jobs.database import Database
from jobs.records import TaskRecord
from jobs.repository import jobs, metrics, tasks
from jobs.states import Cause, TaskKind
from tests.api import client, database, error_of, queue, run
from tests.conftest import DATA
from tests.fakes import FakeQueue
from trainer_core.errors import error_dict

__all__ = ["client", "database", "queue"]


def test_only_a_trained_job_can_be_compared(
    client: TestClient, database: Database, queue: FakeQueue, spec: dict[str, Any]
) -> None:
    fence = run(database, client, spec)
    path = f"/v1/jobs/{fence.job_id}/compare"
    error_of(client.post(path, json={"prompt": "سؤال"}), 409, "state_conflict")
    with database.transaction() as session:
        jobs.finish(session, fence, Cause.FINISH, {"artifact_path": "x"})
    reply = client.post(path, json={"prompt": "سؤال"}, params={"wait_s": 0})
    assert (reply.status_code, reply.json()["state"]) == (202, "queued")
    assert queue.tasks == [(reply.json()["id"], TaskKind.COMPARE)]
    assert client.get(reply.headers["location"]).json()["request"]["prompt"] == "سؤال"
    for body in ({}, {"prompt": ""}, {"prompt": "x", "temperature": -1}, {"prompt": "x", "typo": 1}, {"prompt": "\x00"}):
        error_of(client.post(path, json=body), 422, "spec_invalid")


def test_a_comparison_is_told_while_it_grows(client: TestClient, database: Database, spec: dict[str, Any]) -> None:
    fence = run(database, client, spec)
    with database.transaction() as session:
        jobs.finish(session, fence, Cause.FINISH, {"artifact_path": "x"})
    path = f"/v1/jobs/{fence.job_id}/compare"
    for result, error in (({"trained_model_response": "مدينة الرباط"}, None), (None, error_dict("internal", "broken"))):
        asked = client.post(path, json={"prompt": "سؤال"}, params={"wait_s": 0})
        partial = {"trained_model_response": "مدينة", "reference_model_response": ""}
        with database.transaction() as session:
            claimed = tasks.claim_next(session, [TaskKind.COMPARE], 60)
            assert claimed is not None
            tasks.tell(session, claimed, partial)
        stream = f"{asked.headers['location']}/events"
        timer = threading.Timer(0.7, _finish, (database, claimed, result, error))
        timer.start()
        text = client.get(stream).text
        timer.join()
        events = [dict(line.split(": ", 1) for line in event.splitlines()) for event in text.strip().split("\n\n")]
        assert [event["event"] for event in events] == ["partial", "error" if error else "result"]
        assert json.loads(events[0]["data"]) == partial
        last = json.loads(events[1]["data"])
        assert last == error if error else (last["state"], last["result"]) == ("succeeded", result)
        # Asked for when it is over, it tells the end alone.
        assert client.get(stream).text.count("event: ") == 1
    error_of(client.get(f"/v1/jobs/{fence.job_id}/comparisons/{'0' * 32}/events"), 404, "not_found")
    error_of(client.post(path, json={"prompt": ""}, params={"stream": True}), 422, "spec_invalid")


def test_held_out_prompts_are_counted_while_they_are_answered(
    client: TestClient, database: Database, queue: FakeQueue, spec: dict[str, Any]
) -> None:
    fence = run(database, client, spec)
    path = f"/v1/jobs/{fence.job_id}/compare/held_out"
    error_of(client.post(path), 409, "state_conflict")
    with database.transaction() as session:
        jobs.finish(session, fence, Cause.FINISH, {"artifact_path": "x"})
    for body in ({"prompts": 0}, {"prompts": 201}, {"prompt": "x"}, {"max_length": 0}):
        error_of(client.post(path, json=body), 422, "spec_invalid")
    asked = client.post(path, params={"wait_s": 0})
    assert (asked.status_code, asked.json()["request"]) == (202, {"prompts": 48, "max_length": 128})
    assert asked.headers["location"] == f"{path}/{asked.json()['id']}"
    assert queue.tasks == [(asked.json()["id"], TaskKind.HELD_OUT)]
    sides = {"trained_model_response": "الرباط", "reference_model_response": "فاس"}
    partial = {"prompts": 1, "asked": 2, "current": {"row": 4, "prompt": "سؤال", **sides}}
    counts = {
        "asked": 1,
        "prompts": 1,
        "better": 1,
        "ties": 0,
        "worse": 0,
        "broken": 0,
        "share": 1.0,
        "low": 0.2,
        "high": 1.0,
    }
    answer = {"row": 3, "prompt": "سؤال", **sides, "margin": 1.5, "flags": [], "outcome": "better"}
    with database.transaction() as session:
        claimed = tasks.claim_next(session, [TaskKind.HELD_OUT], 60)
        assert claimed is not None
        tasks.tell(session, claimed, partial)
    timer = threading.Timer(0.7, _finish, (database, claimed, {**counts, "answers": [answer]}, None))
    timer.start()
    text = client.get(f"{asked.headers['location']}/events").text
    timer.join()
    events = [dict(line.split(": ", 1) for line in event.splitlines()) for event in text.strip().split("\n\n")]
    assert [event["event"] for event in events] == ["partial", "result"]
    assert json.loads(events[0]["data"]) == partial
    done = client.get(asked.headers["location"]).json()
    assert done == json.loads(events[1]["data"])
    assert done["result"] == {**counts, "answers": [answer]}
    (listed,) = client.get(path).json()["comparisons"]
    assert listed["result"] == {**counts, "answers": []}
    assert client.get(f"/v1/jobs/{fence.job_id}/comparisons").json()["comparisons"] == []
    error_of(client.get(f"/v1/jobs/{fence.job_id}/comparisons/{done['id']}"), 404, "not_found")


def _finish(database: Database, claimed: TaskRecord, result: dict[str, Any] | None, error: dict[str, Any] | None) -> None:
    with database.transaction() as session:
        tasks.finish(session, claimed, result, error)


def test_a_curve_is_thinned_on_request(client: TestClient, database: Database, spec: dict[str, Any]) -> None:
    fence = run(database, client, spec)
    with database.transaction() as session:
        for step in range(1, 301):
            value = None if step == 77 else 50.0 if step == 150 else 1 / step
            metrics.add(session, fence.job_id, 1, step, {"loss": value, "short": 1.0} if step < 9 else {"loss": value})
    path = f"/v1/jobs/{fence.job_id}/metrics"
    whole = client.get(path).json()["series"]
    thin = client.get(path, params={"max_points": 20}).json()["series"]
    assert len(whole["loss"]) == 300
    assert thin["short"] == whole["short"]
    assert 10 <= len(thin["loss"]) <= 20
    assert [point["step"] for point in thin["loss"]] == sorted({point["step"] for point in thin["loss"]})
    assert all(point in whole["loss"] for point in thin["loss"])
    assert {1, 150, 300} <= {point["step"] for point in thin["loss"]}, "the ends and the peak"
    table = client.get(path, params={"max_points": 4, "format": "csv", "name": "loss"}).text
    assert table.count("\n") <= 5
    error_of(client.get(path, params={"max_points": 3}), 422, "spec_invalid")


def test_a_dry_run_is_refused_as_a_submit_and_answered_by_a_worker(
    client: TestClient, database: Database, queue: FakeQueue, spec: dict[str, Any]
) -> None:
    for change, status, code in (
        ({"beta": -1}, 422, "spec_invalid"),
        ({"model_name": "nobody/nothing"}, 422, "model_not_found"),
        ({"dataset_path": "absent.jsonl"}, 422, "data_invalid"),
    ):
        error = error_of(client.post("/v1/jobs/validate", json={**spec, **change}), status, code)
        assert error == error_of(client.post("/v1/jobs", json={**spec, **change}), status, code)
    reply = client.post("/v1/jobs/validate", json=spec, params={"wait_s": 0})
    assert reply.status_code == 202
    assert reply.json()["waiting_for"] == "worker"
    assert reply.headers["location"] == f"/v1/tasks/{reply.json()['id']}"
    assert queue.tasks == [(reply.json()["id"], TaskKind.VALIDATE)]
    assert queue.runs == []
    assert client.get("/v1/jobs").json()["jobs"] == []
    with database.transaction() as session:
        claimed = tasks.claim_next(session, [TaskKind.VALIDATE], 60)
        assert claimed is not None
        assert claimed.request["spec"]["lora_r"] == 16
        tasks.finish(session, claimed, None, error_dict("data_overlong", "2 rows are longer"))
    assert client.get(reply.headers["location"]).json()["error"]["code"] == "data_overlong"


def test_a_preview_is_checked_before_a_worker_is_asked(client: TestClient, queue: FakeQueue) -> None:
    kto = client.post("/v1/datasets", content=(DATA / "kto_train.jsonl").read_bytes()).json()["id"]
    model = "tafdil/tiny-arabic-qwen-2"
    path = f"/v1/datasets/{kto}/preview"
    for body, code in (
        ({}, "spec_invalid"),
        ({"model_name": "../etc"}, "spec_invalid"),
        ({"model_name": "nobody/nothing"}, "model_not_found"),
        ({"model_name": model, "method": "ipo"}, "data_invalid"),
        ({"model_name": model, "rows": 51}, "spec_invalid"),
        ({"model_name": model, "max_prompt_length": 512}, "spec_invalid"),
    ):
        error_of(client.post(path, json=body), 422, code)
    error_of(client.post(f"/v1/datasets/{'0' * 32}/preview", json={"model_name": model}), 404, "not_found")
    assert queue.tasks == []
    assert client.post(path, json={"model_name": model}, params={"wait_s": 0}).status_code == 202
    assert [kind for _, kind in queue.tasks] == [TaskKind.PREVIEW]
