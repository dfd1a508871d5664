"""What a request checks still holds when it acts: data, checkpoints and models that somebody deletes in the same moment."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jobs.database import Database
from jobs.errors import NotFound, StateConflict
from jobs.repository import datasets, jobs, tasks
from jobs.service import JobService
from jobs.settings import Settings
from jobs.states import Cause, TaskKind
from tests.api import client, database, error_of, queue, run

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


def test_a_dataset_that_a_transaction_holds_is_deleted_after_it(database: Database, client: TestClient) -> None:
    dataset_id = uploaded(client)
    order: list[str] = []

    def remove() -> None:
        with database.transaction() as session:
            datasets.lock(session, dataset_id)
            order.append("deletes")

    with database.transaction() as session:
        assert datasets.held(session, "default", dataset_id)
        assert not datasets.held(session, "other", dataset_id)
        remover = threading.Thread(target=remove)
        remover.start()
        remover.join(0.3)
        order.append("stored")
    remover.join()
    assert order == ["stored", "deletes"]


def test_what_is_not_there_is_not_held(database: Database, client: TestClient, tmp_path: Path) -> None:
    service: JobService = client.app.state.service  # type: ignore[attr-defined]
    with database.transaction() as session, pytest.raises(NotFound):
        service._hold(session, {"resolved_spec": {"dataset_id": "0" * 32}})
