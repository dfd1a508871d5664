"""Files that jobs leave behind: listed, downloaded in parts, deleted, kept for so long, merged, pushed."""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from jobs import retention
from jobs.artifacts import ArtifactFile, ArtifactKind
from jobs.database import Database
from jobs.errors import Forbidden, StateConflict
from jobs.places import run_dir
from jobs.repository import artifacts, jobs, tasks
from jobs.settings import Settings
from jobs.states import Cause, TaskKind
from tests.api import client, database, error_of, queue, run
from tests.conftest import DATA, TINY_MODEL
from tests.fakes import FakeQueue, RecordingObserver
from trainer_core import IPOConfig, PreferenceTrainer
from trainer_core.errors import ModelNotFound, ReferenceMismatch
from trainer_core.merging import merge
from worker.desk import Desk
from worker.exports import _merge, complete, push

__all__ = ["client", "database", "queue"]

WEIGHTS = bytes(range(256)) * 10
FILES = {
    "attempt-1/output/adapter_model.safetensors": ("model", WEIGHTS),
    'attempt-1/output/نص "a"\r\nb.json': ("model", b"{}"),
    "attempt-1/output/checkpoint-4/optimizer.pt": ("checkpoint", b"0" * 1000),
    "attempt-1/log.txt": ("log", "سطر\n".encode()),
}


@pytest.fixture
def job_id(client: TestClient, database: Database, settings: Settings, spec: dict[str, Any]) -> str:
    """A succeeded job with files."""
    fence = run(database, client, spec)
    root = run_dir(settings, fence.job_id)
    kept = []
    for name, (kind, data) in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
        kept.append(ArtifactFile(ArtifactKind(kind), name, len(data), hashlib.sha256(data).hexdigest()))
    with database.transaction() as session:
        jobs.finish(session, fence, Cause.FINISH, {"artifact_path": f"{fence.job_id}/attempt-1/output"})
        artifacts.keep(session, "default", fence.job_id, kept, [1])
    return fence.job_id


def listed(client: TestClient, job_id: str, **query: Any) -> dict[str, dict[str, Any]]:
    found = client.get(f"/v1/jobs/{job_id}/artifacts", params=query).json()["artifacts"]
    return {file["name"]: file for file in found}


def test_files_are_listed_and_downloaded_by_id(client: TestClient, job_id: str) -> None:
    found = listed(client, job_id)
    assert {name: (file["kind"], file["size_bytes"]) for name, file in found.items()} == {
        name: (kind, len(data)) for name, (kind, data) in FILES.items()
    }
    assert list(listed(client, job_id, kind="log")) == ["attempt-1/log.txt"]
    for name, file in found.items():
        reply = client.get(file["href"])
        assert reply.content == FILES[name][1]
        assert hashlib.sha256(reply.content).hexdigest() == file["sha256"]
        assert reply.headers["etag"] == f'"{file["sha256"]}"'
        digest = base64.b64encode(bytes.fromhex(file["sha256"])).decode()
        assert reply.headers["repr-digest"] == f"sha-256=:{digest}:"
        assert reply.headers["content-type"] == "application/octet-stream"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in reply.headers["content-security-policy"]
        assert reply.headers["content-disposition"].startswith("attachment; ")
        assert not set("\r\n") & set(reply.headers["content-disposition"])
    odd = client.get(found['attempt-1/output/نص "a"\r\nb.json']["href"]).headers["content-disposition"]
    assert odd == "attachment; filename=\"____a___b.json\"; filename*=UTF-8''%D9%86%D8%B5%20%22a%22%0D%0Ab.json"


@pytest.mark.parametrize(
    ("wanted", "status", "first", "last"),
    [
        ("bytes=0-9", 206, 0, 9),
        ("bytes=100-", 206, 100, 2559),
        ("bytes=-5", 206, 2555, 2559),
        ("bytes=2550-99999", 206, 2550, 2559),
        ("bytes=-99999", 206, 0, 2559),
        ("bytes=2560-", 416, 0, 0),
        ("bytes=9-3", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=" + "9" * 400 + "-", 416, 0, 0),
        ("bytes=0-1,3-4", 200, 0, 2559),
        ("bytes=" + ",".join("0-" for _ in range(10_000)), 200, 0, 2559),
        ("bytes=-", 200, 0, 2559),
        ("lines=1-2", 200, 0, 2559),
        ("nonsense", 200, 0, 2559),
    ],
)
def test_a_range_is_what_was_asked_for(
    client: TestClient, job_id: str, wanted: str, status: int, first: int, last: int
) -> None:
    href = listed(client, job_id)["attempt-1/output/adapter_model.safetensors"]["href"]
    reply = client.get(href, headers={"Range": wanted})
    assert reply.status_code == status
    if status == 416:
        assert reply.headers["content-range"] == "bytes */2560"
        return
    assert reply.content == WEIGHTS[first : last + 1]
    assert reply.headers["content-length"] == str(last + 1 - first)
    assert reply.headers.get("content-range") == (f"bytes {first}-{last}/2560" if status == 206 else None)


def test_a_download_goes_on_only_with_the_same_file(client: TestClient, job_id: str) -> None:
    file = listed(client, job_id)["attempt-1/output/adapter_model.safetensors"]
    tag = f'"{file["sha256"]}"'
    assert client.get(file["href"], headers={"Range": "bytes=5-", "If-Range": tag}).status_code == 206
    assert client.get(file["href"], headers={"Range": "bytes=5-", "If-Range": '"other"'}).status_code == 200
    assert client.get(file["href"], headers={"If-None-Match": tag}).status_code == 304


def test_a_missing_file_is_said(client: TestClient, settings: Settings, job_id: str) -> None:
    file = listed(client, job_id)["attempt-1/log.txt"]
    (run_dir(settings, job_id) / file["name"]).unlink()
    assert "is missing" in error_of(client.get(file["href"]), 404, "not_found")["message"]
    error_of(client.get(f"/v1/jobs/{job_id}/artifacts/{'0' * 32}"), 404, "not_found")
    for name in ("..%2f..%2fetc", "%2e%2e", "x" * 32, "attempt-1%2flog.txt"):
        assert client.get(f"/v1/jobs/{job_id}/artifacts/{name}").status_code in (404, 422)


def test_deleting_says_what_went_and_what_stays(
    client: TestClient, database: Database, settings: Settings, job_id: str, spec: dict[str, Any]
) -> None:
    root = run_dir(settings, job_id)
    gone = client.delete(f"/v1/jobs/{job_id}/artifacts").json()
    assert ([file["name"] for file in gone["removed"]], gone["freed_bytes"]) == (
        ["attempt-1/output/checkpoint-4/optimizer.pt"],
        1000,
    )
    assert len(gone["kept"]) == 3
    assert not (root / "attempt-1/output/checkpoint-4").exists()
    assert (root / "attempt-1/output/adapter_model.safetensors").exists()
    assert client.delete(f"/v1/jobs/{job_id}/artifacts").json()["removed"] == []
    (told,) = [line for line in client.get(f"/v1/jobs/{job_id}/events").text.splitlines() if "freed_bytes" in line]
    data = json.loads(told.removeprefix("data: "))
    assert data.pop("at")
    assert data.pop("message") == "1 file deleted; 1,000 bytes freed"
    assert (data.pop("message_code"), data.pop("params")) == ("event.artifacts_removed", {"n": 1, "size": 1000})
    assert data == {"kinds": ["checkpoint"], "freed_bytes": 1000, "files": 1}
    running = run(database, client, spec)
    error_of(client.delete(f"/v1/jobs/{running.job_id}"), 409, "state_conflict")
    error_of(client.delete(f"/v1/jobs/{running.job_id}/artifacts"), 409, "state_conflict")
    client.post(f"/v1/jobs/{job_id}/compare", json={"prompt": "س"}, params={"wait_s": 0})
    whole = client.delete(f"/v1/jobs/{job_id}").json()
    assert whole["freed_bytes"] == sum(len(data) for kind, data in FILES.values() if kind != "checkpoint")
    assert not root.exists()
    error_of(client.get(f"/v1/jobs/{job_id}"), 404, "not_found")
    assert [job["id"] for job in client.get("/v1/jobs").json()["jobs"]] == [running.job_id]


def test_what_a_job_still_needs_is_not_deleted(
    client: TestClient, database: Database, job_id: str, spec: dict[str, Any]
) -> None:
    with database.transaction() as session:
        session.execute(text("UPDATE jobs SET checkpoint_step = 4"))
    again = client.post(f"/v1/jobs/{job_id}/rerun", json={"from_checkpoint": True}).json()
    for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/artifacts"):
        assert again["id"] in error_of(client.delete(path), 409, "state_conflict")["message"]
    client.post(f"/v1/jobs/{again['id']}/cancel")
    assert client.delete(f"/v1/jobs/{job_id}/artifacts").status_code == 200
    dataset = client.post("/v1/datasets", content=(DATA / "pairs_train.jsonl").read_bytes()).json()["id"]
    held_out = {**spec, "eval_dataset_id": dataset}
    user = client.post("/v1/jobs", json=held_out).json()["id"]
    assert user in error_of(client.delete(f"/v1/datasets/{dataset}"), 409, "state_conflict")["message"]
    client.post(f"/v1/jobs/{user}/cancel")
    assert client.delete(f"/v1/datasets/{dataset}").json()["freed_bytes"] > 1000
    error_of(client.get(f"/v1/datasets/{dataset}"), 404, "not_found")


def test_what_is_old_goes_if_a_setting_says_so(
    client: TestClient, database: Database, settings: Settings, queue: FakeQueue, job_id: str
) -> None:
    assert retention.apply(database, queue, settings) == 0
    days = settings.model_copy(update={"keep_checkpoints_days": 2.0, "keep_jobs_days": 5.0})
    assert retention.apply(database, queue, days) == 0
    with database.transaction() as session:
        session.execute(text("UPDATE jobs SET finished_at = finished_at - 3 * 86400"))
    assert retention.apply(database, queue, days) == 1000
    assert retention.apply(database, queue, days) == 0
    assert len(listed(client, job_id)) == 3
    with database.transaction() as session:
        session.execute(text("UPDATE jobs SET finished_at = finished_at - 3 * 86400"))
    assert retention.apply(database, queue, days) > 2000
    error_of(client.get(f"/v1/jobs/{job_id}"), 404, "not_found")


def test_the_list_follows_the_files(database: Database, client: TestClient, job_id: str) -> None:
    before = listed(client, job_id)
    one = ArtifactFile(ArtifactKind.LOG, "attempt-1/log.txt", 9, "a" * 64)
    same = before["attempt-1/output/adapter_model.safetensors"]
    model = ArtifactFile(ArtifactKind.MODEL, same["name"], same["size_bytes"], same["sha256"])
    merged = ArtifactFile(ArtifactKind.MERGED, "merged-1/model.safetensors", 1, "b" * 64)
    with database.transaction() as session:
        artifacts.add(session, "default", job_id, [merged])
        artifacts.keep(session, "default", job_id, [one, model], [1])
    after = listed(client, job_id)
    assert set(after) == {one.name, model.name, merged.name}
    assert after[model.name] == same
    assert after[one.name]["id"] != before[one.name]["id"]
    assert (after[one.name]["attempt"], after[merged.name]["attempt"]) == (1, None)


def test_rows_of_a_dataset_are_shown_as_they_are(client: TestClient) -> None:
    dataset = client.post("/v1/datasets", content=(DATA / "kto_train.jsonl").read_bytes()).json()["id"]
    rows = client.get(f"/v1/datasets/{dataset}/rows", params={"first": 3, "count": 2}).json()["rows"]
    lines = (DATA / "kto_train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [row.pop("row") for row in rows] == [3, 4]
    assert rows == [json.loads(line) for line in lines[2:4]]


# -- merging and pushing


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "out"
    config = IPOConfig(
        model_name=str(TINY_MODEL),
        dataset_path=str(DATA / "pairs_train.jsonl"),
        output_dir=str(folder),
        learning_rate=1e-2,
        learning_rate_cap=None,
        max_steps=3,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
    )
    PreferenceTrainer(config, observer=RecordingObserver()).train()
    return folder


def test_merged_weights_answer_as_base_and_adapter_do(trained: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = tmp_path / "merged"
    told = merge(trained, target)
    assert json.loads((target / "merged.json").read_text(encoding="utf-8")) == told
    assert told["max_logit_difference"] < 1e-3
    tokenizer = AutoTokenizer.from_pretrained(target)
    ids = tokenizer("ما عكس كبير؟", return_tensors="pt")
    whole, base = (AutoModelForCausalLM.from_pretrained(path, dtype="float32") for path in (target, TINY_MODEL))
    with torch.no_grad():
        plain = base(**ids).logits
        expected = PeftModel.from_pretrained(base, trained)(**ids).logits
        assert torch.allclose(whole(**ids).logits, expected, atol=1e-3)
    assert not torch.allclose(plain, expected, atol=1e-2), "the adapter must have changed something"
    assert not list(target.glob("adapter*"))


def test_another_base_than_the_trained_one_is_refused(trained: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL)
    model.model.embed_tokens.weight.data += 0.1
    model.save_pretrained(other)
    with pytest.raises(ReferenceMismatch, match="training ended: the weights of its base differ"):
        merge(trained, tmp_path / "merged", lambda _: str(other))
    assert not (tmp_path / "merged").exists()


def test_only_an_adapter_is_merged(
    client: TestClient, database: Database, queue: FakeQueue, job_id: str, spec: dict[str, Any]
) -> None:
    reply = client.post(f"/v1/jobs/{job_id}/merge")
    assert (reply.status_code, reply.headers["location"]) == (202, f"/v1/tasks/{reply.json()['id']}")
    assert queue.tasks[-1] == (reply.json()["id"], TaskKind.MERGE)
    whole = run(database, client, {**spec, "use_lora": False})
    error_of(client.post(f"/v1/jobs/{whole.job_id}/merge"), 409, "state_conflict")
    with database.transaction() as session:
        jobs.finish(session, whole, Cause.FINISH, {"artifact_path": "x"})
    assert "needs no merge" in error_of(client.post(f"/v1/jobs/{whole.job_id}/merge"), 409, "state_conflict")["message"]
    assert client.post(f"/v1/jobs/{job_id}/push", json={"name": "m"}).status_code == 202
    assert (
        "merge first"
        in error_of(client.post(f"/v1/jobs/{job_id}/push", json={"name": "m", "kind": "merged"}), 404, "not_found")[
            "message"
        ]
    )
    for name in ("../x", "a/b", "", "-x"):
        error_of(client.post(f"/v1/jobs/{job_id}/push", json={"name": name}), 422, "spec_invalid")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as an upload needs. Keeps what it got."""

    asked: ClassVar[list[tuple[str, str, Any]]] = []
    blobs: ClassVar[dict[str, bytes]] = {}
    refuses: ClassVar[bool] = False

    def log_message(self, *_: Any) -> None:
        pass

    def _reply(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_PUT(self) -> None:
        self.blobs[self.path.rpartition("/")[2]] = self._body()
        self._reply({})

    def do_GET(self) -> None:
        self._reply({"id": "acme/model", "sha": "0" * 40, "siblings": [], "private": True})

    def do_POST(self) -> None:
        body = self._body()
        self.asked.append((self.path, self.headers.get("Authorization", ""), body))
        host = f"http://{self.headers['Host']}"
        if self.refuses:
            self._reply({"error": "no"}, 400)
        elif self.path.endswith("/repos/create"):
            self._reply({"url": f"{host}/acme/model"})
        elif "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": _mode(f["path"])} for f in json.loads(body)["files"]]
            self._reply({"files": [{**file, "shouldIgnore": False} for file in files]})
        elif self.path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [{"upload": {"href": f"{host}/blobs/{entry['oid']}"}} for entry in objects]
            self._reply(
                {
                    "transfer": "basic",
                    "objects": [
                        {"oid": entry["oid"], "size": entry["size"], "actions": action}
                        for entry, action in zip(objects, actions, strict=True)
                    ],
                }
            )
        else:
            self._reply({"success": True, "commitOid": "1" * 40, "commitUrl": f"{host}/acme/model/commit/1"})


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


@pytest.fixture
def hub() -> Generator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Hub.asked.clear()
    Hub.blobs.clear()
    Hub.refuses = False
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_is_pushed_to_a_hub(trained: Path, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    names = ["adapter_model.safetensors", "adapter_config.json", "ipo_metadata.json"]
    told = push(trained, names, "acme/model", "hf_secret", private=True, endpoint=hub)
    assert told == {"repository": "acme/model", "url": f"{hub}/acme/model/commit/1", "files": 3}
    weights = (trained / "adapter_model.safetensors").read_bytes()
    assert list(Hub.blobs.values()) == [weights]
    commit = next(body for path, _, body in Hub.asked if "/commit/" in path)
    committed = {json.loads(line)["value"].get("path") for line in commit.splitlines()}
    assert committed >= set(names)
    assert all(authorization == "Bearer hf_secret" for path, authorization, _ in Hub.asked if "/api/" in path)
    Hub.refuses = True
    with pytest.raises(Forbidden, match="acme/model with HTTP 400"):
        push(trained, names, "acme/model", "hf_secret", private=True, endpoint=hub)


def test_what_an_earlier_version_left_is_pushed_with_a_card_and_the_base_by_name(trained: Path, tmp_path: Path) -> None:
    metadata = json.loads((trained / "ipo_metadata.json").read_text(encoding="utf-8"))
    config = json.loads((trained / "adapter_config.json").read_text(encoding="utf-8"))
    earlier = tmp_path / "earlier"
    shutil.copytree(trained, earlier, ignore=shutil.ignore_patterns("checkpoint-*", "README.md"))
    metadata["model_name"] = "acme/base"
    (earlier / "ipo_metadata.json").write_text(json.dumps(without(metadata, "dtype", "evaluation")), encoding="utf-8")
    (earlier / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/srv/models/base"}))
    before = {path.name: path.read_bytes() for path in earlier.iterdir()}
    for number, place in enumerate((str(TINY_MODEL), None)):
        staged = tmp_path / f"staged-{number}"
        staged.mkdir()
        names = complete(earlier, sorted(before), staged, lambda _, place=place: place or gone())
        assert set(names) == {path.name for path in staged.iterdir()} == {*before, "README.md"}
        assert '"base_model_name_or_path": "acme/base"' in (staged / "adapter_config.json").read_text(encoding="utf-8")
        card = (staged / "README.md").read_text(encoding="utf-8")
        assert "base_model: acme/base" in card
        assert f'dtype="{"bfloat16" if place else "float32"}"' in card
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == before


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def gone() -> str:
    raise ModelNotFound("there is no model 'acme/base'")


def test_a_merge_that_is_done_again_keeps_its_weights(
    trained: Path, database: Database, settings: Settings, queue: FakeQueue, client: TestClient, spec: dict[str, Any]
) -> None:
    """As when a worker dies after it listed the files, and before it said so."""
    fence = run(database, client, {**spec, "dataset_path": "samples/pairs_train.jsonl"})
    root = run_dir(settings, fence.job_id)
    shutil.copytree(trained, root / "attempt-1/output", ignore=shutil.ignore_patterns("checkpoint-*"))
    with database.transaction() as session:
        jobs.finish(session, fence, Cause.FINISH, {"artifact_path": f"{fence.job_id}/attempt-1/output"})
        tasks.insert(session, TaskKind.MERGE, "default", {}, fence.job_id)
    for _ in range(2):
        with database.transaction() as session:
            session.execute(text("UPDATE tasks SET lease_expires_at = 0"))
            tasks.reap(session, max_losses=9)
            task = tasks.claim_next(session, [TaskKind.MERGE], 60)
            job = jobs.get(session, fence.job_id)
        assert task
        assert job
        _merge(Desk(task, database, settings), job)  # type: ignore[arg-type]
    found = listed(client, fence.job_id, kind="merged")
    assert {name.partition("/")[2] for name in found} >= {"model.safetensors", "merged.json", "tokenizer.json"}
    assert all((root / name).is_file() for name in found)
    assert len(list(root.glob("merged-*"))) == 1
    with database.transaction() as session:
        session.execute(text("UPDATE tasks SET lease_expires_at = 0"))
        tasks.reap(session, max_losses=9)
        task = tasks.claim_next(session, [TaskKind.MERGE], 60)
        assert task
    with database.transaction() as session:
        session.execute(text("UPDATE tasks SET lease_token = 'another'"))
    with pytest.raises(StateConflict):
        _merge(Desk(task, database, settings), job)  # type: ignore[arg-type]
    assert all((root / name).is_file() for name in found), "what a stale worker wrote is gone, and nothing else"
    error_of(client.delete(f"/v1/jobs/{fence.job_id}"), 409, "state_conflict")
