"""What a request checks still holds when it acts: data, checkpoints and models that somebody deletes in the same moment."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy.orm import Session

from jobs.artifacts import ArtifactFile, ArtifactKind
from jobs.database import Database
from jobs.errors import NotFound, StateConflict
from jobs.places import run_dir
from jobs.repository import artifacts, datasets, jobs, kept_jobs, tasks
from jobs.service import JobService
from jobs.settings import Settings
from jobs.states import Cause, TaskKind
from jobs.storage import Storage
from tests.api import client, database, error_of, queue, run
from trainer_core.errors import ModelNotFound
from worker import exports, generation
from worker.desk import Desk

__all__ = ["client", "database", "queue"]

ROWS = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 4


def uploaded(client: TestClient) -> str:
    # The same rows are one dataset, so each upload differs.
    rows = ROWS + f'{{"prompt": "{threading.get_ident()}-{uploaded.count}", "chosen": "b", "rejected": "c"}}\n'.encode()
    uploaded.count += 1
    return client.post("/v1/datasets", content=rows).json()["id"]


uploaded.count = 0  # type: ignore[attr-defined]


def test_a_dataset_is_deleted_or_used_and_never_both(client: TestClient, spec: dict[str, Any]) -> None:
    del spec["dataset_path"]
    for _ in range(12):
        dataset_id = uploaded(client)

        def submit(_: int, dataset_id: str = dataset_id) -> int:
            return client.post("/v1/jobs", json={**spec, "dataset_id": dataset_id}).status_code

        with ThreadPoolExecutor(5) as pool:
            submits = [pool.submit(submit, number) for number in range(4)]
            removed = pool.submit(lambda dataset_id=dataset_id: client.delete(f"/v1/datasets/{dataset_id}").status_code)
        statuses = {each.result() for each in submits}
        assert statuses <= {202, 404}
        assert removed.result() == (409 if 202 in statuses else 200), statuses


def test_a_job_is_not_stored_without_its_dataset(client: TestClient, spec: dict[str, Any]) -> None:
    """The dataset is deleted after it was checked and before the job is stored."""
    del spec["dataset_path"]
    dataset_id = uploaded(client)
    service: JobService = client.app.state.service  # type: ignore[attr-defined]
    checked = JobService._checked

    def then_deleted(self: JobService, *args: Any) -> dict[str, Any]:
        fields = checked(self, *args)
        assert client.delete(f"/v1/datasets/{dataset_id}").status_code == 200
        return fields

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobService, "_checked", then_deleted)
        error = error_of(client.post("/v1/jobs", json={**spec, "dataset_id": dataset_id}), 404, "not_found")
    assert dataset_id in error["message"]
    assert service.jobs(10) == []


def test_a_rerun_of_a_job_whose_dataset_is_gone(client: TestClient, database: Database, spec: dict[str, Any]) -> None:
    del spec["dataset_path"]
    fence = run(database, client, {**spec, "dataset_id": uploaded(client)})
    with database.transaction() as session:
        jobs.finish(session, fence, Cause.FAIL, {})
    dataset_id = client.get(f"/v1/jobs/{fence.job_id}").json()["dataset_id"]
    assert client.delete(f"/v1/datasets/{dataset_id}").status_code == 200
    for path in ("rerun", "clone"):
        error = error_of(client.post(f"/v1/jobs/{fence.job_id}/{path}", json={}), 404, "not_found")
        assert dataset_id in error["message"]


def finished_job(client: TestClient, database: Database, settings: Settings, spec: dict[str, Any]) -> str:
    fence = run(database, client, spec)
    with database.transaction() as session:
        jobs.record(session, fence, "checkpoint", {"step": 4}, {"checkpoint_step": 4})
        jobs.finish(session, fence, Cause.FINISH, {"artifact_path": f"{fence.job_id}/attempt-1/output"})
    folder = settings.runs_dir / fence.job_id / "attempt-1" / "output"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0")
    return fence.job_id


def test_a_rerun_does_not_start_from_checkpoints_that_are_deleted(
    client: TestClient, database: Database, settings: Settings, spec: dict[str, Any]
) -> None:
    job_id = finished_job(client, database, settings, spec)
    assert client.delete(f"/v1/jobs/{job_id}/artifacts", params={"kind": "checkpoint"}).status_code == 200
    error_of(client.post(f"/v1/jobs/{job_id}/rerun", json={"from_checkpoint": True}), 409, "state_conflict")
    service: JobService = client.app.state.service  # type: ignore[attr-defined]
    fields = {"resolved_spec": service.job(job_id).resolved_spec, "start_from": job_id}
    with database.transaction() as session, pytest.raises(StateConflict, match="deleted"):
        service._hold(session, fields)


def test_a_model_that_was_deleted_answers_nothing(
    client: TestClient, database: Database, settings: Settings, spec: dict[str, Any]
) -> None:
    job_id = finished_job(client, database, settings, spec)
    assert client.delete(f"/v1/jobs/{job_id}/artifacts", params={"kind": "model"}).status_code == 200
    assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "succeeded"
    for path, body in (("compare", {"prompt": "a"}), ("merge", None), ("push", {"name": "m"})):
        error = error_of(client.post(f"/v1/jobs/{job_id}/{path}", json=body), 409, "state_conflict")
        assert "deleted" in error["message"]
    with database.reading() as session:
        job = jobs.get(session, job_id)
        assert job
        assert job.artifact_path is None, "a worker that has the model in memory looks here first"


@pytest.mark.parametrize("kind", [TaskKind.COMPARE, TaskKind.HELD_OUT])
def test_a_worker_that_has_a_deleted_model_in_memory_answers_nothing(
    client: TestClient,
    database: Database,
    settings: Settings,
    spec: dict[str, Any],
    kind: TaskKind,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = finished_job(client, database, settings, spec)
    path, body = {
        TaskKind.COMPARE: ("compare", {"prompt": "a"}),
        TaskKind.HELD_OUT: ("compare/held_out", {}),
    }[kind]
    assert client.post(f"/v1/jobs/{job_id}/{path}", json=body, params={"wait_s": 0}).status_code == 202
    with database.transaction() as session:
        task = tasks.claim_next(session, [kind], 60)
        assert task
        kept_jobs.forget(session, job_id, [ArtifactKind.MODEL])
    used: list[str] = []
    warm = SimpleNamespace(names=[job_id], get=lambda name, _: used.append(name), forget=used.append)
    monkeypatch.setattr(generation, "_warm", warm)
    with pytest.raises(ModelNotFound, match=f"job {job_id} has no trained model"):
        generation.ANSWERS[kind](Desk(task, database, settings))
    assert used == []


@pytest.mark.parametrize("kind", ["model", "merged"])
def test_files_that_a_task_reads_are_not_deleted(
    client: TestClient, database: Database, settings: Settings, spec: dict[str, Any], kind: str
) -> None:
    job_id = finished_job(client, database, settings, spec)
    with database.transaction() as session:
        task_id = tasks.insert(session, TaskKind.MERGE, "default", {}, job_id)
    with database.transaction() as session:
        task = tasks.claim_next(session, [TaskKind.MERGE], 60)
        assert task
        assert task.id == task_id
    error = error_of(client.delete(f"/v1/jobs/{job_id}/artifacts", params={"kind": kind}), 409, "state_conflict")
    assert "merge" in error["message"]
    error_of(client.delete(f"/v1/jobs/{job_id}"), 409, "state_conflict")
    with database.transaction() as session:
        tasks.finish(session, task, {})
    assert client.delete(f"/v1/jobs/{job_id}/artifacts", params={"kind": kind}).status_code == 200


def assert_deleted_after(database: Database, hold: Callable[[Session], object], lock: Callable[[Session], object]) -> None:
    """That a deletion, which takes the lock, waits for a transaction that holds."""
    order: list[str] = []

    def remove() -> None:
        with database.transaction() as session:
            lock(session)
            order.append("deletes")

    with database.transaction() as session:
        assert hold(session)
        remover = threading.Thread(target=remove)
        remover.start()
        remover.join(0.3)
        order.append("stored")
    remover.join()
    assert order == ["stored", "deletes"]


def test_a_dataset_that_a_transaction_holds_is_deleted_after_it(database: Database, client: TestClient) -> None:
    dataset_id = uploaded(client)
    with database.reading() as session:
        assert not datasets.held(session, "other", dataset_id)
    assert_deleted_after(
        database,
        lambda session: datasets.held(session, "default", dataset_id),
        lambda session: datasets.lock(session, dataset_id),
    )


HOLDERS = {
    "rerun": lambda session, job_id: kept_jobs.has_checkpoint(session, "default", job_id),
    "task": kept_jobs.held,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_job_that_a_transaction_holds_is_deleted_after_it(
    client: TestClient, database: Database, settings: Settings, spec: dict[str, Any], holder: str
) -> None:
    job_id = finished_job(client, database, settings, spec)
    with database.reading() as session:
        assert not kept_jobs.has_checkpoint(session, "other", job_id)
    assert_deleted_after(
        database,
        lambda session: HOLDERS[holder](session, job_id),
        lambda session: kept_jobs.lock(session, job_id),
    )


@pytest.mark.parametrize("moment", ["checked", "deleting"])
@pytest.mark.parametrize("starter", ["the job", "a rerun of it"])
def test_a_job_is_deleted_or_started_from_and_never_both(
    client: TestClient, database: Database, settings: Settings, spec: dict[str, Any], moment: str, starter: str
) -> None:
    """A rerun from its checkpoint that arrives after the check, or while files are deleted."""
    job_id = asked_id = finished_job(client, database, settings, spec)
    if starter == "a rerun of it":
        asked_id = client.post(f"/v1/jobs/{job_id}/rerun", json={"from_checkpoint": True}).json()["id"]
        assert client.post(f"/v1/jobs/{asked_id}/cancel").is_success
    statuses: list[int] = []

    def rerun() -> None:
        statuses.append(client.post(f"/v1/jobs/{asked_id}/rerun", json={"from_checkpoint": True}).status_code)

    reruns = threading.Thread(target=rerun)
    owner, name = (kept_jobs, "forget") if moment == "checked" else (Storage, "delete_job")
    then = getattr(owner, name)

    def after_a_rerun(*asked: Any) -> None:
        reruns.start()
        # Inside the transaction of the deletion it waits for its end; later it need not.
        reruns.join(0.3 if moment == "checked" else None)
        then(*asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, after_a_rerun)
        assert client.delete(f"/v1/jobs/{job_id}").status_code == 200
    reruns.join()
    assert statuses in ([404], [409])
    assert not run_dir(settings, job_id).exists()


def merged_files(database: Database, settings: Settings, job_id: str) -> list[Path]:
    """Files of a job's merge, as a worker leaves them."""
    names = ["merged-1/README.md", "merged-1/model.safetensors"]
    paths = [run_dir(settings, job_id) / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0")
    with database.transaction() as session:
        artifacts.add(session, "default", job_id, [ArtifactFile(ArtifactKind.MERGED, name, 1, "0" * 64) for name in names])
    return paths


def test_a_push_that_begins_while_files_are_deleted_uploads_none(
    client: TestClient, database: Database, settings: Settings, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = finished_job(client, database, settings, spec)
    paths = merged_files(database, settings, job_id)
    assert client.post(f"/v1/jobs/{job_id}/push", json={"name": "m", "kind": "merged"}).status_code == 202
    hub = settings.model_copy(update={"hub_token": SecretStr("hf_secret"), "hub_namespace": "acme"})
    uploaded: list[list[str]] = []
    monkeypatch.setattr(exports, "push", lambda _, names, *__, **___: uploaded.append(names))
    delete, refused = Storage.delete, list[str]()

    def pushes_first(self: Storage, *asked: Any) -> None:
        with database.transaction() as session:
            task = tasks.claim_next(session, [TaskKind.PUSH], 60)
        assert task
        try:
            exports.ANSWERS[TaskKind.PUSH](Desk(task, database, hub))
        except NotFound as error:
            refused.append(error.message)
        delete(self, *asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "delete", pushes_first)
        removed = client.delete(f"/v1/jobs/{job_id}/artifacts", params={"kind": "merged"})
    assert (removed.status_code, removed.json()["freed_bytes"]) == (200, 2)
    assert (refused, uploaded) == ([f"job {job_id} has no merged files"], [])
    assert not any(path.exists() for path in paths)


def test_a_deletion_that_fails_is_finished_by_the_next(
    client: TestClient, database: Database, settings: Settings, spec: dict[str, Any]
) -> None:
    job_id = finished_job(client, database, settings, spec)
    paths = merged_files(database, settings, job_id)

    def fails(*_: Any) -> None:
        raise OSError("the disk does not answer")

    path = f"/v1/jobs/{job_id}/artifacts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "delete", fails)
        assert client.delete(path).status_code == 500
    assert all(path.exists() for path in paths)
    assert client.get(path).json()["artifacts"] == []
    assert client.delete(path).status_code == 200
    assert not paths[0].parent.exists()


def test_what_is_not_there_is_not_held(database: Database, client: TestClient, tmp_path: Path) -> None:
    service: JobService = client.app.state.service  # type: ignore[attr-defined]
    with database.transaction() as session, pytest.raises(NotFound):
        service._hold(session, {"resolved_spec": {"dataset_id": "0" * 32}})
