"""Files as replies: by id alone, from the job's directory alone, and as nothing that a browser would run or show."""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jobs.artifacts import ArtifactFile, ArtifactKind, checkpoint_files, hashed, model_files
from jobs.database import Database
from jobs.places import run_dir
from jobs.repository import artifacts, jobs
from jobs.settings import Settings
from jobs.states import Cause
from tafdil.downloads import local_name
from tafdil.models import Artifact
from tests.api import client, database, error_of, queue, run
from tests.live import settings

__all__ = ["client", "database", "queue", "settings"]

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = [
    "plain.json",
    'a"b.json',
    "a\r\nSet-Cookie: x=y\r\n\r\n<script>.html",
    "\u202egpj.exe",
    "\u2066x\u2069.html",
    "نص\u200f.json",
    "..",
    "..%2f..%2fetc",
    "a;b=c.html",
    "a\\..\\b",
    "x" * 200,
    "\x1b[31mred\x7f",
    "<img src=x onerror=alert(1)>.svg",
    "😀.json",
]


def keep(database: Database, client: TestClient, spec: dict[str, Any], files: dict[str, bytes]) -> str:
    """A job that left the files of the names, as the database has them."""
    fence = run(database, client, spec)
    kept = [
        ArtifactFile(ArtifactKind.MODEL, name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()
    ]
    with database.transaction() as session:
        jobs.finish(session, fence, Cause.FINISH, {"artifact_path": f"{fence.job_id}/attempt-1/output"})
        artifacts.keep(session, "default", fence.job_id, kept, [1])
    return fence.job_id


def test_names_reach_no_header_as_they_are(
    client: TestClient, database: Database, settings: Settings, spec: dict[str, Any]
) -> None:
    files = {f"attempt-1/output/{name}": name.encode() for name in NAMES if name != ".."}
    job_id = keep(database, client, spec, files)
    for name, data in files.items():
        path = run_dir(settings, job_id) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    listed = client.get(f"/v1/jobs/{job_id}/artifacts").json()["artifacts"]
    assert len(listed) == len(files)
    for file in listed:
        reply = client.get(file["href"])
        assert reply.content == files[file["name"]]
        assert reply.headers["content-type"] == "application/octet-stream"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert "set-cookie" not in reply.headers
        kind, plain, encoded = reply.headers["content-disposition"].split("; ")
        assert kind == "attachment"
        assert set(plain.removeprefix('filename="').removesuffix('"')) <= set(
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
        )
        assert encoded.isascii()
        assert not set(encoded.removeprefix("filename*=UTF-8''")) & set("\"'\\/;,<> \r\n\x1b\x7f")


@pytest.mark.parametrize(
    "name", ["../secret", "attempt-1/../../secret", "attempt-1/output/link", "linked/secret", "{root}/secret"]
)
def test_a_name_or_link_that_leads_out_is_not_found(
    client: TestClient, database: Database, settings: Settings, tmp_path: Path, spec: dict[str, Any], name: str
) -> None:
    """Also when the database has it: what a training told of its files is not believed."""
    settings.runs_dir.mkdir(exist_ok=True)
    secret = settings.runs_dir / "secret"
    secret.write_bytes(b"canary-of-another-job")
    job_id = keep(database, client, spec, {name.format(root=settings.runs_dir.resolve()): b"canary-of-another-job"})
    output = run_dir(settings, job_id) / "attempt-1" / "output"
    output.mkdir(parents=True)
    (output / "link").symlink_to(secret)
    (run_dir(settings, job_id) / "linked").symlink_to(settings.runs_dir)
    (file,) = client.get(f"/v1/jobs/{job_id}/artifacts").json()["artifacts"]
    reply = client.get(file["href"])
    error_of(reply, 404, "not_found")
    assert "canary" not in reply.text
    assert client.delete(f"/v1/jobs/{job_id}/artifacts", params={"kind": "model"}).status_code == 200
    assert secret.read_bytes() == b"canary-of-another-job"


def test_what_a_training_says_it_left_is_listed_only_from_its_directory(tmp_path: Path) -> None:
    run, secret = tmp_path / "run", tmp_path / "secret"
    output = run / "attempt-1" / "output"
    checkpoint = output / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    secret.write_text("secret")
    (output / "model.safetensors").write_text("x")
    (output / "link").symlink_to(secret)
    (checkpoint / "good").write_text("x")
    (checkpoint / "link").symlink_to(secret)
    told = dict.fromkeys(["model.safetensors", "link", "../../../secret", str(secret), "checkpoint-1/../link"], "0" * 64)
    assert [file.name for file in model_files(run, output, told)] == ["attempt-1/output/model.safetensors"]
    told = dict.fromkeys(["good", "link", "../link", "../../../../secret", str(secret)], "0" * 64)
    (checkpoint / "manifest.json").write_text(json.dumps({"files": told}))
    assert sorted(Path(file.name).name for file in checkpoint_files(run)) == ["good", "manifest.json"]
    (run / "attempt-1" / "log.txt").symlink_to(secret)
    assert not list(hashed(run, [run / "attempt-1" / "log.txt"], ArtifactKind.LOG))


@pytest.mark.parametrize("path", ["artifacts/", "artifacts/%2e%2e", "artifacts/*", "artifacts/attempt-1%2flog.txt"])
def test_no_directory_is_listed(client: TestClient, database: Database, spec: dict[str, Any], path: str) -> None:
    job_id = keep(database, client, spec, {"log.txt": b"x"})
    reply = client.get(f"/v1/jobs/{job_id}/{path}", follow_redirects=False)
    assert reply.status_code in (307, 404, 422)
    # The path that was asked for may be repeated, and nothing else named.
    assert "log.txt" not in reply.text.replace("artifacts/attempt-1/log.txt", "")


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "..\\..\\x", "a/../../b", "attempt-1/output/../../../x", "...", "C:\\x"]
)
@pytest.mark.parametrize("kind", ["model", "checkpoint", "log"])
def test_a_client_writes_nowhere_else_whatever_the_service_says(tmp_path: Path, name: str, kind: str) -> None:
    file = Artifact(id="0" * 32, kind=kind, name=name, size_bytes=1, sha256="0" * 64, href="", created_at=NOW)
    target = Path(os.path.normpath(tmp_path / local_name(file)))
    assert target.is_relative_to(tmp_path)
    assert target != tmp_path
