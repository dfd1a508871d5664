"""The API on a real database, with a fake queue: what it takes, what it refuses, and how it says so."""

import gzip
import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jobs.database import Database
from jobs.repository import jobs, metrics
from jobs.repository.jobs import Fence
from jobs.settings import Settings
from jobs.states import Cause
from tests.api import client, database, error_of, queue, run
from tests.conftest import DATA
from tests.fakes import FakeQueue
from tests.training import PAIR_METHODS
from trainer_core.config import METHODS
from trainer_core.errors import error_dict

__all__ = ["client", "database", "queue"]


def test_a_job_is_stored_published_and_shown(client: TestClient, queue: FakeQueue, spec: dict[str, Any]) -> None:
    reply = client.post("/v1/jobs", json={**spec, "name": "تجربة"})
    assert reply.status_code == 202
    job = reply.json()
    assert reply.headers["location"] == f"/v1/jobs/{job['id']}"
    assert queue.runs == [job["id"]]
    assert (job["state"], job["queue_position"], job["percent"], job["attempt"]) == ("queued", 1, 0, 0)
    assert (job["name"], job["spec"]["beta"], job["spec"]["use_lora"]) == ("تجربة", 0.1, True)
    assert client.get(reply.headers["location"]).json() == job
    metadata = client.get(f"/v1/jobs/{job['id']}/metadata").json()
    assert (metadata["complete"], metadata["training_method"], metadata["beta"]) == (False, "ipo", 0.1)
    assert metadata["sent_spec"] == {**spec, "name": "تجربة"}


def test_a_broken_broker_loses_no_job(client: TestClient, queue: FakeQueue, spec: dict[str, Any]) -> None:
    queue.is_broken = True
    job_id = client.post("/v1/jobs", json=spec).json()["id"]
    assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "queued"
    assert client.get("/readyz").json()["broker"] == "down"


def test_a_failed_commit_is_never_a_202(client: TestClient, database: Database, spec: dict[str, Any]) -> None:
    from sqlalchemy import event

    def refuse(_: Any) -> None:
        raise RuntimeError("no commit today")

    event.listen(database.engine, "commit", refuse)
    try:
        reply = client.post("/v1/jobs", json=spec)
    finally:
        event.remove(database.engine, "commit", refuse)
    error_of(reply, 500, "internal")
    assert client.get("/v1/jobs").json()["jobs"] == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"typo": 1}, "typo"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"beta": "much"}, "beta"),
        ({"beta": -1}, "beta"),
        ({"max_steps": 1.5}, "max_steps"),
        ({"method": "ppo"}, "method"),
        ({"model_name": "../../etc"}, "model_name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": ""}, "name"),
        ({"adapter_name": "../x"}, "adapter_name"),
        ({"report_to": ["elsewhere"]}, "report_to.0"),
        ({"early_stopping_patience": 0}, "early_stopping_patience"),
    ],
)
def test_a_bad_field_is_named(client: TestClient, spec: dict[str, Any], change: dict[str, Any], field: str) -> None:
    error = error_of(client.post("/v1/jobs", json={**spec, **change}), 422, "spec_invalid")
    assert [detail["field"] for detail in error["details"]] == [field]
    assert field in error["message"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_nan_and_infinity_are_refused(client: TestClient, spec: dict[str, Any], value: str) -> None:
    body = json.dumps(spec)[:-1] + f', "beta": {value}}}'
    reply = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert error_of(reply, 422, "spec_invalid")["details"][0]["field"] == "beta"


@pytest.mark.parametrize("field", ["name", "sample_prompts", "lora_target_modules", "dataset_path"])
def test_half_a_surrogate_pair_is_refused(client: TestClient, spec: dict[str, Any], field: str) -> None:
    """JSON can write it, and neither a database nor a file can hold it."""
    value = "a\ud800b" if field in ("name", "dataset_path") else ["q_proj", "a\ud800b"]
    body = json.dumps({**spec, field: value})
    reply = client.post("/v1/jobs", content=body, headers={"content-type": "application/json", "Idempotency-Key": "k"})
    assert reply.status_code == 422
    assert field in reply.text


def test_a_forgotten_content_type_is_named(client: TestClient, spec: dict[str, Any]) -> None:
    error = error_of(client.post("/v1/jobs", content=json.dumps(spec)), 422, "spec_invalid")
    assert "Content-Type: application/json" in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 20_000, b'{"seed": ' + b"9" * 5000 + b"}"])
def test_a_body_that_is_no_spec(client: TestClient, body: bytes) -> None:
    reply = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert reply.status_code in (400, 422)
    error_of(reply, reply.status_code, "spec_invalid")


def test_an_unknown_model_is_named_with_those_there_are(client: TestClient, spec: dict[str, Any]) -> None:
    error = error_of(client.post("/v1/jobs", json={**spec, "model_name": "Qwen/None"}), 422, "model_not_found")
    assert "Qwen/None" in error["message"]
    assert "tafdil/tiny-arabic-qwen-2" in error["message"]
    error = error_of(client.post("/v1/jobs", json={**spec, "adapter_name": "my/adapter"}), 422, "model_not_found")
    assert "my/adapter" in error["message"]


def test_a_model_that_shipped_earlier_is_named_with_its_replacement(client: TestClient, spec: dict[str, Any]) -> None:
    error = error_of(client.post("/v1/jobs", json={**spec, "model_name": "tafdil/tiny-arabic-qwen"}), 422, "model_not_found")
    assert "tafdil/tiny-arabic-qwen-2 replaced it" in error["message"]
    assert (error["details"][0]["field"], error["details"][0]["code"]) == ("model_name", "model_replaced")


def test_a_paused_job_whose_model_is_gone_stays_paused(client: TestClient, spec: dict[str, Any], database: Database) -> None:
    job_id = client.post("/v1/jobs", json=spec).json()["id"]
    client.post(f"/v1/jobs/{job_id}/pause")
    with database.transaction() as session:
        job = jobs.get(session, job_id)
        assert job
        job.resolved_spec = {**job.resolved_spec, "model_name": "tafdil/tiny-arabic-qwen"}
    error_of(client.post(f"/v1/jobs/{job_id}/resume"), 422, "model_not_found")
    assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "paused"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.jsonl", "inside the data directory"),
        ("/etc/passwd", "inside the data directory"),
        ("samples/../../x", "inside the data directory"),
        ("link.jsonl", "inside the data directory"),
        ("a\\..\\b", "inside the data directory"),
        ("nothing.jsonl", "does not exist"),
        ("samples", "does not exist"),
        ("empty.jsonl", "is empty"),
        ("x\x00y", "is not a usable path"),
        ("y" * 400, "is not a usable path"),
        ("runs/x/log.txt", "belongs to the service"),
    ],
)
def test_a_data_path_that_may_not_be_read(
    client: TestClient, settings: Settings, tmp_path: Path, spec: dict[str, Any], path: str, reason: str
) -> None:
    (tmp_path / "secret.jsonl").write_text("secret")
    (settings.data_dir / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (settings.data_dir / "empty.jsonl").touch()
    error = error_of(client.post("/v1/jobs", json={**spec, "dataset_path": path}), 422, "data_invalid")
    assert error["details"][0]["field"] == "dataset_path"
    assert reason in error["message"]


def test_broken_rows_of_a_file_are_named_at_submit(client: TestClient, settings: Settings, spec: dict[str, Any]) -> None:
    shutil.copy(DATA / "pairs_train.jsonl", settings.data_dir / "broken.jsonl")
    with (settings.data_dir / "broken.jsonl").open("a") as file:
        file.write('{"prompt": "x", "chosen": ""}\n')
    error = error_of(client.post("/v1/jobs", json={**spec, "dataset_path": "broken.jsonl"}), 422, "data_invalid")
    assert [(d["line"], d["field"]) for d in error["details"]] == [(641, "chosen"), (641, "rejected")]


@pytest.mark.parametrize("method", PAIR_METHODS)
def test_a_kto_file_is_refused_for_pairs(client: TestClient, spec: dict[str, Any], method: str) -> None:
    body = {**spec, "method": method, "dataset_path": "samples/kto_train.jsonl"}
    error = error_of(client.post("/v1/jobs", json=body), 422, "data_invalid")
    assert "needs preference pairs" in error["message"]
    assert error["details"][0]["field"] == "dataset_path"
    uploaded = client.post("/v1/datasets", content=(DATA / "kto_train.jsonl").read_bytes()).json()
    body = {**spec, "method": method, "dataset_path": None, "dataset_id": uploaded["id"]}
    error = error_of(client.post("/v1/jobs", json=body), 422, "data_invalid")
    assert error["details"][0]["field"] == "dataset_id"
    body = {**spec, "method": method, "eval_dataset_path": "samples/kto_train.jsonl"}
    error = error_of(client.post("/v1/jobs", json=body), 422, "data_invalid")
    assert error["details"][0]["field"] == "eval_dataset_path"


@pytest.mark.parametrize("field", ["model_name", "ref_model_name", "adapter_name"])
@pytest.mark.parametrize("name", ["nobody/nothing", "tafdil/tiny-arabic-qwen"])
def test_an_unknown_model_is_named_by_its_own_field(client: TestClient, spec: dict[str, Any], field: str, name: str) -> None:
    error = error_of(client.post("/v1/jobs", json={**spec, field: name}), 422, "model_not_found")
    assert [detail["field"] for detail in error["details"]] == [field]


def test_unknown_things_are_not_found(client: TestClient, spec: dict[str, Any]) -> None:
    absent = "0" * 32
    for path in ("", "/metrics", "/metadata", "/events", "/logs", f"/comparisons/{absent}"):
        error_of(client.get(f"/v1/jobs/{absent}{path}"), 404, "not_found")
    error_of(client.post(f"/v1/jobs/{absent}/cancel"), 404, "not_found")
    error_of(client.post(f"/v1/jobs/{absent}/compare", json={"prompt": "x"}), 404, "not_found")
    error_of(client.get(f"/v1/datasets/{absent}"), 404, "not_found")
    error_of(client.post("/v1/jobs", json={**spec, "dataset_path": None, "dataset_id": absent}), 404, "not_found")
    error_of(client.get("/v1/nothing"), 404, "not_found")
    for path in ("jobs/abc", "jobs/abc/events", "datasets/abc", "tasks/abc", f"jobs/{absent}/comparisons/abc"):
        assert error_of(client.get(f"/v1/{path}"), 404, "not_found")["message_code"].startswith("not_found.")
    assert client.get("/v1/jobs/abc").json()["error"]["message"] == "no job has the id abc"
    error_of(client.delete("/v1/jobs"), 405, "method_not_allowed")
    kinds = client.get(f"/v1/jobs/{absent}/artifacts", params={"kind": ["model", "nothing"]})
    assert [detail["field"] for detail in error_of(kinds, 422, "spec_invalid")["details"]] == ["kind"]


def test_a_second_cancel_is_a_conflict(client: TestClient, spec: dict[str, Any]) -> None:
    job_id = client.post("/v1/jobs", json=spec).json()["id"]
    assert client.post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "cancelled"
    assert "already cancelled" in error_of(client.post(f"/v1/jobs/{job_id}/cancel"), 409, "state_conflict")["message"]
    events = client.get(f"/v1/jobs/{job_id}/events").text
    assert "event: queued" in events
    assert "event: cancelled" in events


def test_a_body_over_the_limit(client: TestClient, settings: Settings, spec: dict[str, Any]) -> None:
    body = json.dumps({**spec, "name": "x" * settings.max_body_bytes})
    error_of(client.post("/v1/jobs", content=body), 413, "too_large")

    def pieces() -> Generator[bytes]:
        for _ in range(100):
            yield b"x" * 4096

    error_of(client.post("/v1/jobs", content=pieces()), 413, "too_large")
    assert client.get("/v1/jobs").json()["jobs"] == []


def test_an_upload_is_checked_while_it_arrives(client: TestClient, settings: Settings) -> None:
    def pieces() -> Generator[bytes]:
        data = (DATA / "kto_split.json").read_bytes()
        for start in range(0, len(data), 777):
            yield data[start : start + 777]

    reply = client.post("/v1/datasets", params={"name": "عينة"}, content=pieces())
    assert reply.status_code == 201
    dataset = reply.json()
    expected = {
        "name": "عينة",
        "format": "json",
        "kind": "kto",
        "train_rows": 400,
        "validation_rows": 200,
        "desirable_rows": 207,
    }
    assert {name: dataset[name] for name in expected} == expected
    assert client.get(reply.headers["location"]).json() == dataset
    assert client.get("/v1/datasets").json()["datasets"] == [dataset]
    assert (settings.datasets_dir / f"{dataset['id']}.rows").stat().st_size == dataset["size_bytes"]


def test_gzipped_and_parquet_uploads(client: TestClient, settings: Settings, tmp_path: Path, spec: dict[str, Any]) -> None:
    from pyarrow import Table, parquet

    lines = (DATA / "pairs_held_out.jsonl").read_bytes()
    rows = [json.loads(line) for line in lines.splitlines()]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "rows.parquet")
    for body, form in ((gzip.compress(lines), "jsonl"), ((tmp_path / "rows.parquet").read_bytes(), "parquet")):
        dataset = client.post("/v1/datasets", content=body).json()
        assert (dataset["format"], dataset["kind"], dataset["train_rows"]) == (form, "pairs", len(rows))
        job = {**spec, "dataset_path": None, "dataset_id": dataset["id"]}
        assert client.post("/v1/jobs", json=job).status_code == 202
    broken = (tmp_path / "rows.parquet").read_bytes()[:-9]
    assert "not valid Parquet" in error_of(client.post("/v1/datasets", content=broken), 422, "data_invalid")["message"]
    assert len(list(settings.datasets_dir.iterdir())) == 2


@pytest.mark.parametrize(
    ("body", "line"), [(b"", None), (b'{"prompt": "x"}\n', 1), (b'{"prompt":"p","chosen":"a","rejected":"b"}\n{', 2)]
)
def test_a_broken_upload_leaves_nothing(client: TestClient, settings: Settings, body: bytes, line: int | None) -> None:
    error = error_of(client.post("/v1/datasets", content=body), 422, "data_invalid")
    assert error["details"][0].get("line") == line
    assert list(settings.datasets_dir.iterdir()) == []
    assert client.get("/v1/datasets").json()["datasets"] == []


def test_an_upload_over_the_limit_leaves_nothing(client: TestClient, settings: Settings) -> None:
    row = (DATA / "pairs_train.jsonl").read_bytes()
    error_of(client.post("/v1/datasets", content=row * 4), 413, "too_large")
    assert list(settings.datasets_dir.iterdir()) == []


def test_a_form_upload_is_told_how(client: TestClient) -> None:
    reply = client.post("/v1/datasets", files={"file": b"{}"})
    assert "--data-binary" in error_of(reply, 422, "data_invalid")["message"]


def test_pages_follow_each_other(client: TestClient, spec: dict[str, Any]) -> None:
    ids = [client.post("/v1/jobs", json=spec).json()["id"] for _ in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        page = client.get("/v1/jobs", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
        if not cursor:
            break
    assert seen == ids[::-1]
    assert client.get("/v1/jobs", params={"state": "running"}).json()["jobs"] == []
    assert len(client.get("/v1/jobs", params={"method": "ipo"}).json()["jobs"]) == 5
    error_of(client.get("/v1/jobs", params={"state": "asleep"}), 422, "spec_invalid")


def test_metrics_as_json_and_csv(client: TestClient, database: Database, spec: dict[str, Any]) -> None:
    fence = run(database, client, spec)
    with database.transaction() as session:
        metrics.add(session, fence.job_id, 1, 5, {"loss": 0.25, "rewards/margins": None})
    series = client.get(f"/v1/jobs/{fence.job_id}/metrics").json()["series"]
    assert series == {
        "loss": [{"attempt": 1, "step": 5, "value": 0.25}],
        "rewards/margins": [{"attempt": 1, "step": 5, "value": None}],
    }
    only = client.get(f"/v1/jobs/{fence.job_id}/metrics", params={"name": "loss"}).json()["series"]
    assert set(only) == {"loss"}
    text = client.get(f"/v1/jobs/{fence.job_id}/metrics", params={"format": "csv"})
    assert text.headers["content-type"].startswith("text/csv")
    assert text.text.splitlines() == ["name,attempt,step,value", "loss,1,5,0.25", "rewards/margins,1,5,"]


def test_events_replay_after_the_last_one_seen(client: TestClient, database: Database, spec: dict[str, Any]) -> None:
    fence = run(database, client, spec)
    with database.transaction() as session:
        jobs.record(session, fence, "phase", {"phase": "training"}, {"phase": "training"})
        jobs.add_warning(session, fence, {"code": "learning_rate_clamped", "message": "تنبيه"})
        jobs.finish(session, fence, Cause.FAIL, {"error": error_dict("nonfinite_loss", "loss became nan")})
    path = f"/v1/jobs/{fence.job_id}/events"
    kinds = [line[7:] for line in client.get(path).text.splitlines() if line.startswith("event: ")]
    assert kinds == ["queued", "claimed", "phase", "warning", "failed"]
    replayed = client.get(path, headers={"Last-Event-ID": "3"}).text
    assert [line for line in replayed.splitlines() if line.startswith("id: ")] == ["id: 4", "id: 5"]
    assert "تنبيه" in replayed
    assert client.get(path, headers={"Last-Event-ID": "5"}).status_code == 204
    job = client.get(f"/v1/jobs/{fence.job_id}").json()
    assert (job["state"], job["error"]["code"], job["warnings"][0]["code"]) == (
        "failed",
        "nonfinite_loss",
        "learning_rate_clamped",
    )


def test_logs_of_every_attempt(client: TestClient, database: Database, settings: Settings, spec: dict[str, Any]) -> None:
    fence = run(database, client, spec)
    assert client.get(f"/v1/jobs/{fence.job_id}/logs").text == ""
    folder = settings.runs_dir / fence.job_id / "attempt-1"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("سجل\n", encoding="utf-8")
    assert client.get(f"/v1/jobs/{fence.job_id}/logs").text == "سجل\n"
    error_of(client.get(f"/v1/jobs/{fence.job_id}/logs", params={"attempt": 2}), 404, "not_found")


def test_health(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {
        "ready": True,
        "database": "up",
        "data_directory": "writable",
        "broker": "up",
        "oldest_expired_lease_s": 0,
        "parts": [],
    }


def test_every_documented_example_works_when_pasted(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    examples = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert set(examples) == set(METHODS)
    for example in examples.values():
        assert client.post("/v1/jobs", json=example["value"]).status_code == 202
    for kind, about in document["paths"]["/v1/datasets"]["post"]["requestBody"]["content"].items():
        body = about["example"] if isinstance(about["example"], str) else json.dumps(about["example"])
        assert client.post("/v1/datasets", content=body.encode(), headers={"content-type": kind}).status_code == 201
    assert client.get("/docs").status_code == 200


def test_priorities_and_classes_are_checked(client: TestClient, spec: dict[str, Any]) -> None:
    for fields in ({"priority": 101}, {"priority": 1.5}, {"gpu_class": "A 100"}, {"gpu_class": ""}):
        error_of(client.post("/v1/jobs", json={**spec, **fields}), 422, "spec_invalid")
    low = client.post("/v1/jobs", json={**spec, "priority": -1}).json()
    high = client.post("/v1/jobs", json={**spec, "priority": 1}).json()
    assert high["queue_position"] == 1
    assert client.get(f"/v1/jobs/{low['id']}").json()["queue_position"] == 2
    assert high["seconds_until_start"] is None


def test_a_curve_does_not_fold_back(client: TestClient, spec: dict[str, Any], database: Database) -> None:
    """Attempt 1 reached step 4 with a checkpoint at 2; attempt 2 died while loading; attempt 3 went on from 2."""
    job_id = client.post("/v1/jobs", json=spec).json()["id"]
    for attempt, first, steps in ((1, 0, range(1, 5)), (2, None, range(0)), (3, 2, range(3, 7))):
        with database.transaction() as session:
            job = jobs.claim_next(session, "w", 60)
            assert job
            fence = Fence(job_id, attempt, job.lease_token or "")
            if first is not None:
                jobs.set_first_step(session, fence, first)
            for step in steps:
                metrics.add(session, job_id, attempt, step, {"loss": step + attempt / 10})
            assert jobs.lose(session, fence, 9, "x")
    path = f"/v1/jobs/{job_id}/metrics"
    every = client.get(path).json()["series"]["loss"]
    assert [(point["attempt"], point["step"]) for point in every] == [(1, s) for s in range(1, 5)] + [
        (3, s) for s in range(3, 7)
    ]
    current = client.get(path, params={"only_current": True}).json()["series"]["loss"]
    assert [(point["attempt"], point["step"]) for point in current] == [(1, 1), (1, 2), (3, 3), (3, 4), (3, 5), (3, 6)]
