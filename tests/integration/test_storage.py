"""Jobs' files in an object store: a local S3 server stands for it."""

import hashlib
import logging
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.artifacts import ArtifactFile, ArtifactKind, newest_checkpoint
from jobs.errors import NotFound
from jobs.places import run_dir
from jobs.records import ArtifactRecord
from jobs.repository import artifacts, jobs
from jobs.settings import Settings
from jobs.states import Cause
from jobs.storage import Storage
from tafdil import Client
from tests.api import BASE_URL, run
from tests.fakes import FakeQueue
from tests.integration.test_stack import FAST, spec
from tests.stack import StackUnderTest, until

DATA = bytes(range(256)) * 64


@pytest.fixture(scope="module")
def bucket() -> Generator[str]:
    """The URL of a bucket on an S3 server of the test's own."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test-secret-of-the-store",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem().mkdir("tafdil-test")
        yield "s3://tafdil-test/runs"
    server.stop()


@pytest.fixture
def remote(tmp_path: Path, bucket: str) -> Settings:
    found = Settings(data_dir=tmp_path / "data", artifacts_url=bucket)
    found.make_directories()
    return found


def a_file(settings: Settings, job_id: str, name: str, data: bytes = DATA, kind: str = "model") -> ArtifactFile:
    path = run_dir(settings, job_id) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return ArtifactFile(ArtifactKind(kind), name, len(data), hashlib.sha256(data).hexdigest())


def test_files_are_in_the_store_for_who_does_not_have_them(remote: Settings) -> None:
    storage, job_id = Storage(remote), "a" * 32
    files = [
        a_file(remote, job_id, "attempt-1/output/نموذج.bin"),
        a_file(remote, job_id, "attempt-1/log.txt", b"log", "log"),
    ]
    storage.publish(job_id, files)
    shutil.rmtree(run_dir(remote, job_id))
    assert storage.has(job_id, files[0].name)
    opened, size = storage.open(job_id, files[0].name)
    with opened:
        opened.seek(1000)
        assert (size, opened.read(5)) == (len(DATA), DATA[1000:1005])
    records = [ArtifactRecord(name=file.name) for file in files]
    storage.fetch(job_id, records)
    assert (run_dir(remote, job_id) / files[0].name).read_bytes() == DATA
    storage.delete(job_id, [files[0].name])
    storage.delete(job_id, [files[0].name])
    assert not storage.has(job_id, files[0].name)
    with pytest.raises(NotFound, match="missing from"):
        storage.open(job_id, files[0].name)
    shutil.rmtree(run_dir(remote, job_id))
    with pytest.raises(NotFound, match="missing from the data directory and the artifact store"):
        storage.fetch(job_id, records)
    storage.delete_job(job_id)
    storage.delete_job(job_id)
    assert not storage.has(job_id, files[1].name)


def test_what_merges_wrote_is_found_here_and_in_the_store(remote: Settings) -> None:
    storage, job_id = Storage(remote), "c" * 32
    assert storage.merged(job_id) == set()
    stored = a_file(remote, job_id, "merged-1/model.safetensors", kind="merged")
    storage.publish(job_id, [stored, a_file(remote, job_id, "attempt-1/log.txt", b"log", "log")])
    shutil.rmtree(run_dir(remote, job_id))
    here = a_file(remote, job_id, "merged-2/a/b.bin", kind="merged")
    a_file(remote, job_id, "attempt-1/output/merged-3/model.safetensors")
    assert storage.merged(job_id) == {stored.name, here.name}
    storage.delete(job_id, storage.merged(job_id))
    assert storage.merged(job_id) == set()


def test_a_log_that_grew_is_copied_again(remote: Settings) -> None:
    storage, job_id = Storage(remote), "b" * 32
    for text in (b"one", b"two"):
        storage.publish(job_id, [a_file(remote, job_id, "attempt-1/log.txt", text, "log")])
    shutil.rmtree(run_dir(remote, job_id))
    with storage.open(job_id, "attempt-1/log.txt")[0] as file:
        assert file.read() == b"two"


def test_the_newest_checkpoint_is_that_of_the_highest_step() -> None:
    steps = {"attempt-1": (5, 20), "attempt-2": (9, 100)}
    names = [f"{a}/output/checkpoint-{step}/{file}" for a, found in steps.items() for step in found for file in ("a", "b")]
    records = [ArtifactRecord(name=name) for name in [*names, "attempt-3/output/model.safetensors"]]
    found = [record.name for record in newest_checkpoint(records)]
    assert found == ["attempt-2/output/checkpoint-100/a", "attempt-2/output/checkpoint-100/b"]
    assert newest_checkpoint([]) == []


def test_a_range_is_read_from_the_store(settings: Settings, bucket: str, spec: dict[str, Any]) -> None:
    remote = settings.model_copy(update={"artifacts_url": bucket})
    with TestClient(create_app(remote, FakeQueue()), BASE_URL) as client:
        database = client.app.state.service.database  # type: ignore[attr-defined]
        fence = run(database, client, spec)
        log, model = (
            a_file(remote, fence.job_id, "attempt-1/log.txt", b"printed", "log"),
            a_file(remote, fence.job_id, "attempt-1/output/model.safetensors"),
        )
        Storage(remote).publish(fence.job_id, [log, model])
        with database.transaction() as session:
            jobs.finish(session, fence, Cause.FINISH, {"artifact_path": "x"})
            artifacts.keep(session, "default", fence.job_id, [log, model], [1])
        shutil.rmtree(run_dir(remote, fence.job_id))
        files = {file["kind"]: file for file in client.get(f"/v1/jobs/{fence.job_id}/artifacts").json()["artifacts"]}
        part = client.get(files["model"]["href"], headers={"Range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, DATA[100:200])
        assert client.get(f"/v1/jobs/{fence.job_id}/logs").text == "printed"
        assert client.delete(f"/v1/jobs/{fence.job_id}").status_code == 200
        assert not Storage(remote).has(fence.job_id, model.name)


def test_another_machine_goes_on_from_what_is_in_the_store(bucket: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**FAST, "TAFDIL_ARTIFACTS_URL": bucket}.items():
            patch.setenv(name, value)
        with StackUnderTest(tmp_path) as stack, Client(stack.url) as client:
            until(client.ready)
            whole = spec("cpo", max_steps=10, save_steps=5)
            job = client.wait(client.submit(whole)["id"], 300)
            assert job["state"] == "succeeded"
            printed = client.logs(job["id"])
            # As on a machine that never saw this job.
            shutil.rmtree(stack.data_dir / "runs" / job["id"])
            assert client.compare(job["id"], "ما عاصمة مصر؟", max_length=8)["state"] == "succeeded"
            assert client.logs(job["id"]) == printed
            again = client.wait(client.rerun(job["id"], from_checkpoint=True)["id"], 300)
            assert again["state"] == "succeeded"
            (loaded,) = [event for event in client.events(again["id"]) if event["event"] == "checkpoint_loaded"]
            assert loaded["data"]["step"] == 10
            # The training process has no key to the store.
            plan = (stack.data_dir / "runs").rglob("*.*")
            assert not [path for path in plan if b"test-secret-of-the-store" in path.read_bytes()]
