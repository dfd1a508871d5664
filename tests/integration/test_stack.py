"""The whole service with real processes and real trainings: worker, broker, database and trainer, and what survives a kill.

The road runs on the embedded broker with SQLite, and on Redis with PostgreSQL. `tests/faults` causes many more, on both.
"""

import json
import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tafdil import ApiError, Client
from tests.conftest import DATA
from tests.servers import postgres_schema, redis_prefix
from tests.stack import StackUnderTest, alive, until
from tests.training import held_out, soon, train_file
from trainer_core.config import HEADLINE

FAST = {
    "TAFDIL_LEASE_S": "4",
    "TAFDIL_HEARTBEAT_S": "1",
    "TAFDIL_DISPATCH_S": "0.5",
    "TAFDIL_REPUBLISH_S": "5",
}
SPEC: dict[str, Any] = {
    "model_name": "tafdil/tiny-arabic-qwen-2",
    "learning_rate": 1e-3,
    "learning_rate_cap": None,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "logging_steps": 5,
    "max_steps": 10,
}
LONG = {"max_steps": 2000, "save_steps": 20}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[StackUnderTest]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FAST.items():
            patch.setenv(name, value)
        with StackUnderTest(tmp_path_factory.mktemp("stack")) as found:
            yield found


@pytest.fixture
def client(stack: StackUnderTest) -> Generator[Client]:
    with Client(stack.url) as found:
        until(found.ready)
        yield found


def test_the_whole_road_on_servers(tmp_path: Path) -> None:
    """Redis and PostgreSQL that run elsewhere, and a training that is killed on the way."""
    with postgres_schema() as database_url, redis_prefix() as (redis_url, prefix), pytest.MonkeyPatch.context() as patch:
        for name, value in FAST.items():
            patch.setenv(name, value)
        external = {
            "TAFDIL_DATABASE_URL": database_url,
            "TAFDIL_REDIS_URL": redis_url,
            "TAFDIL_REDIS_PREFIX": prefix,
        }
        with StackUnderTest(tmp_path, external) as stack, Client(stack.url) as client:
            test_the_whole_road(client, "kto")
            test_a_killed_training_goes_on_from_its_checkpoint(client, stack)


def spec(method: str = "ipo", **fields: Any) -> dict[str, Any]:
    return {**SPEC, "method": method, "dataset_path": f"samples/{train_file(method)}", **fields}


def training(client: Client, job_id: str, step: int = 1) -> dict[str, Any]:
    """The job once it has trained some steps."""

    def look() -> dict[str, Any] | None:
        job = client.job(job_id)
        assert job["state"] in ("queued", "running"), job
        return job if job["state"] == "running" and job["step"] >= step else None

    return until(look, 400)


def test_a_dry_run_says_what_a_job_would_do(client: Client) -> None:
    dataset = client.upload_dataset(DATA / "pairs_train.jsonl")
    wanted = {**spec("cpo"), "dataset_path": None, "dataset_id": dataset["id"]}
    said = client.validate(wanted)["result"]
    assert said["plan"]["optimizer_steps"] == 10
    assert said["memory"]["fits"] is True
    assert said["time"]["seconds"] > 0
    (row,) = client.preview(dataset["id"], SPEC["model_name"], first_row=7, rows=1)["result"]["rows"]
    assert row["row"] == 7
    with pytest.raises(ApiError) as refused:
        client.validate({**wanted, "max_length": 40, "max_prompt_length": 20, "on_overlong": "reject"})
    assert (refused.value.status, refused.value.code) == (422, "data_overlong")
    job = client.wait(client.submit(wanted)["id"], 400)
    assert job["state"] == "succeeded"
    # The speed of a training tells the time of the next.
    assert client.validate(wanted)["result"]["time"]["basis"] == "earlier runs of this model"


def test_what_a_job_leaves_behind_is_downloaded_merged_and_deleted(client: Client, tmp_path: Path) -> None:
    job = client.wait(client.submit(spec("ipo", save_steps=5, max_steps=10))["id"], 400)
    files = {file["name"]: file for file in client.artifacts(job["id"])}
    assert {file["kind"] for file in files.values()} == {"model", "checkpoint", "log", "metrics", "manifest"}
    assert {"attempt-1/output/adapter_model.safetensors", "attempt-1/output/checkpoint-5/optimizer.pt"} <= set(files)
    saved = client.download(job["id"], tmp_path, kinds=["model", "metrics", "manifest"])
    assert {path.name for path in saved} >= {"adapter_model.safetensors", "ipo_metadata.json", "metrics.csv"}
    manifest = json.loads((tmp_path / "attempt-1" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["resolved_spec"] == job["spec"]
    assert len(manifest["files"]) == len(files) - 1
    told = until(lambda: client.merge(job["id"], wait_s=100)["result"])
    assert told["max_logit_difference"] < 1e-2
    assert "model.safetensors" in {path.name for path in client.download(job["id"], tmp_path / "m", kinds=["merged"])}
    removed = client.delete_artifacts(job["id"])
    assert {file["kind"] for file in removed["removed"]} == {"checkpoint", "merged"}
    assert client.compare(job["id"], "ما عاصمة مصر؟", max_length=8)["state"] == "succeeded"
    client.delete_job(job["id"])
    with pytest.raises(ApiError):
        client.job(job["id"])


def check_review(client: Client, job_id: str, told: list[dict[str, Any]]) -> None:
    """The review is in the metadata, and its held-out prompts are those that are asked."""
    (review,) = told
    assert client.metadata(job_id)["review"] == review
    verdict = client.compare_held_out(job_id, prompts=2, max_length=8).result
    assert verdict is not None
    assert [answer["row"] for answer in verdict["answers"]] == review["held_out_rows"][:2]
    assert sum(verdict[name] for name in ("better", "ties", "worse", "broken")) == verdict["prompts"] == 2


@pytest.mark.parametrize("method", soon(HEADLINE))
def test_the_whole_road(client: Client, method: str) -> None:
    train = client.upload_dataset(DATA / train_file(method))
    pairs = client.upload_dataset(held_out("ipo"))
    fields = {"dataset_path": None, "dataset_id": train["id"], "eval_dataset_id": pairs["id"]}
    said = client.validate(spec(method, **fields))["result"]
    job = client.submit(spec(method, **fields))
    assert client.wait(job["id"], 400)["state"] == "succeeded"
    assert said["spec"] == job["spec"]

    events = list(client.events(job["id"]))
    kinds = [event["event"] for event in events]
    assert kinds[:2] == ["queued", "claimed"]
    assert kinds[-1] == "succeeded"
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    (report,) = [event["data"]["report"] for event in events if event["event"] == "data"]
    assert report["rows_trained_on"] == said["data"]["rows_trained_on"] == train["train_rows"]
    sampled = [event["data"] for event in events if event["event"] == "samples"]
    assert [entry["step"] for entry in sampled] == [0, 10]
    assert all(sample["prompt"] and sample["response"] for entry in sampled for sample in entry["samples"])
    phases = [event["data"]["phase"] for event in events if event["event"] == "phase"]
    assert {"preparing", "loading", "training", "evaluating", "saving"} == set(phases)

    done = client.job(job["id"])
    assert (done["step"], done["total_steps"], done["percent"], done["attempt"]) == (10, 10, 100, 1)
    (effect,) = [event["data"] for event in events if event["event"] == "effect"]
    assert said["forecast"]["effect"] == effect["effect"] == done["effect"] == "changed"
    assert client.metadata(job["id"])["effect_evidence"] == effect["evidence"]
    check_review(client, job["id"], [event["data"]["review"] for event in events if event["event"] == "review"])
    series = client.metrics(job["id"])
    assert [point["step"] for point in series["loss"]] == [1, 5, 10]
    assert [point["step"] for point in series["eval_loss"]] == [0, 10]
    metadata = client.metadata(job["id"])
    assert metadata["complete"] is True
    assert metadata["training_method"] == method
    assert metadata["dataset_sha256"] == train["sha256"]
    assert metadata["eval_dataset_sha256"] == pairs["sha256"]
    assert len(metadata["weights_sha256"]) == 64
    assert metadata["versions"]["trl"]

    (began,) = [event["data"] for event in client.events(job["id"]) if event["event"] == "first_step"]
    assert (began["start"], {"process", "imports", "data", "model", "first_step"} - began["seconds"].keys()) == (
        "warm",
        set(),
    )
    assert all(0 <= seconds < 300 for seconds in [began["since_claim_s"], *began["seconds"].values()])
    *partial, last = client.compare_events(job["id"], "هل تعرف اسم عاصمة المغرب؟", max_length=32)
    assert last["event"] == "result"
    assert all(event["event"] == "partial" for event in partial)
    answer = client.compare(job["id"], "هل تعرف اسم عاصمة المغرب؟", max_length=32)
    assert last["data"]["result"] == answer["result"]
    assert answer["state"] == "succeeded"
    result = answer["result"]
    assert result["trained_model_response"]
    assert result["reference_model_response"]
    assert result["proof"]["trained_fingerprint"] == metadata["weights_sha256"]
    assert result["proof"]["reference_fingerprint"] == metadata["base_weights_sha256"]
    assert result["proof"]["max_logit_difference"] > 0


def test_a_cancel_frees_the_process(client: Client, stack: StackUnderTest) -> None:
    job_id = client.submit(spec(**LONG))["id"]
    training(client, job_id)
    pids = set(until(stack.training_pids))
    client.cancel(job_id)
    with pytest.raises(ApiError, match=r"already (being )?cancelled"):
        client.cancel(job_id)
    done = client.wait(job_id, 400)
    assert (done["state"], done["error"]["code"]) == ("cancelled", "cancelled")
    assert not alive(pids), "the job is told cancelled only when its process is gone"


def test_a_cancel_while_loading(client: Client, stack: StackUnderTest) -> None:
    job_id = client.submit(spec(**LONG))["id"]
    until(lambda: client.job(job_id)["state"] == "running")
    client.cancel(job_id)
    assert client.wait(job_id, 400)["state"] == "cancelled"
    assert not stack.training_pids()


def test_bad_rows_fail_the_job_with_their_lines(client: Client, stack: StackUnderTest) -> None:
    """A file that changes after the submit is found by the worker."""
    path = stack.data_dir / "changing.jsonl"
    path.write_text((DATA / "pairs_train.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    first = client.submit(spec(**LONG))["id"]
    job_id = client.submit(spec(dataset_path="changing.jsonl"))["id"]
    path.write_text('{"prompt": "x", "chosen": "y"}\n', encoding="utf-8")
    client.cancel(first)
    job = client.wait(job_id, 400)
    assert (job["state"], job["error"]["code"]) == ("failed", "data_invalid")
    assert [(each["field"], each["reason"], each["line"]) for each in job["error"]["details"]] == [
        ("rejected", "is missing", 1)
    ]
    assert any("DataInvalid" in line for line in client.logs(job_id).splitlines())


def test_a_warning_reaches_the_job(client: Client) -> None:
    job_id = client.submit(spec(learning_rate=1e-3, learning_rate_cap=5e-7, max_steps=2))["id"]
    job = client.wait(job_id, 400)
    assert [warning["code"] for warning in job["warnings"]] == ["learning_rate_clamped", "hardly_changes"]
    assert "5e-07" in job["warnings"][0]["message"]
    assert "this run will hardly change the model" in job["warnings"][1]["message"]
    assert job["effect"] == "hardly_changed"


def test_a_killed_worker_costs_no_job(client: Client, stack: StackUnderTest) -> None:
    job_id = client.submit(spec(max_steps=50, save_steps=10))["id"]
    training(client, job_id, step=25)
    pids = set(stack.training_pids())
    stack.kill_process("train-worker")
    until(lambda: not alive(pids))
    stack.restart("train-worker")
    job = client.wait(job_id, 400)
    assert (job["state"], job["attempt"], job["step"]) == ("succeeded", 2, 50)
    events = {event["event"]: event["data"] for event in client.events(job_id)}
    assert events["worker_lost"]["attempt"] == 1
    assert events["checkpoint_loaded"]["step"] >= 20


def test_a_killed_training_goes_on_from_its_checkpoint(client: Client, stack: StackUnderTest) -> None:
    job_id = client.submit(spec(max_steps=50, save_steps=10))["id"]
    training(client, job_id, step=25)
    os.kill(stack.training_pids()[0], signal.SIGKILL)
    job = client.wait(job_id, 400)
    assert (job["state"], job["attempt"]) == ("succeeded", 2)
    resumed = [event["data"]["step"] for event in client.events(job_id) if event["event"] == "checkpoint_loaded"]
    assert resumed[0] >= 20


def test_a_restarted_api_loses_nothing(client: Client, stack: StackUnderTest) -> None:
    job_id = client.submit(spec(max_steps=80))["id"]
    queued_id = client.submit(spec(max_steps=2))["id"]
    training(client, job_id)
    pids = stack.training_pids()
    stack.kill_process("api")
    stack.restart("api")
    until(client.ready)
    assert stack.training_pids() == pids
    assert client.wait(job_id, 400)["attempt"] == 1
    assert client.wait(queued_id, 400)["state"] == "succeeded"
    ids = [event["id"] for event in client.events(job_id)]
    assert ids == list(range(1, len(ids) + 1))


def test_a_worker_that_is_told_to_leave_checkpoints_first(client: Client, stack: StackUnderTest) -> None:
    job_id = client.submit(spec(max_steps=50, save_steps=1000))["id"]
    step = training(client, job_id, step=10)["step"]
    os.kill(stack.pid("train-worker"), signal.SIGTERM)
    until(lambda: client.job(job_id)["state"] == "queued")
    stack.restart("train-worker")
    job = client.wait(job_id, 400)
    assert (job["state"], job["attempt"]) == ("succeeded", 2)
    events = {event["event"]: event["data"] for event in client.events(job_id)}
    assert "preempted" in events
    assert "worker_lost" not in events
    assert events["checkpoint_loaded"]["step"] >= step


def test_a_paused_training_goes_on_exactly(client: Client, stack: StackUnderTest) -> None:
    """Paused twice, a training ends with the weights of one that was never stopped."""
    whole = client.submit(spec(max_steps=40, save_steps=1000, logging_steps=1))["id"]
    job_id = client.submit(spec(max_steps=40, save_steps=1000, logging_steps=1))["id"]
    assert client.wait(whole, 400)["state"] == "succeeded"
    for step in (8, 20):
        training(client, job_id, step)
        client.pause(job_id)
        until(lambda: client.job(job_id)["state"] == "paused")
        assert not stack.training_pids()
        client.resume(job_id)
    assert client.wait(job_id, 400)["state"] == "succeeded"
    assert client.metadata(job_id)["weights_sha256"] == client.metadata(whole)["weights_sha256"]
    losses = [[point["value"] for point in client.metrics(each)["loss"]] for each in (whole, job_id)]
    assert losses[0] == losses[1]
    assert [a["outcome"] for a in client.attempts(job_id)] == ["paused", "paused", "succeeded"]
    again = client.rerun(job_id)["id"]
    assert client.wait(again, 400)["state"] == "succeeded"
    assert client.metadata(again)["weights_sha256"] == client.metadata(whole)["weights_sha256"]
