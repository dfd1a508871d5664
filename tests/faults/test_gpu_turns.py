"""Runs and comparisons on one GPU, where runs go first. The GPU is a program that answers as `nvidia-smi` does."""

import os
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr, ValidationError
from sqlalchemy import text

from api.app import create_app
from jobs.database import Database
from jobs.repository import jobs, signs
from jobs.repository.jobs import Fence
from jobs.settings import Settings
from jobs.states import Cause, TaskKind
from tests.api import BASE_URL
from tests.fakes import FakeQueue
from tests.faults.test_devices import SMI
from tests.integration.test_repository import FIELDS
from worker import generation, generation_worker, gpu, gpu_turn
from worker import signs as worker_signs
from worker.gpu_turn import GpuTurns, shared_gpu

DEVICE = gpu.Gpu("GPU-7a", "Stand-in 8GB")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = Settings(
        data_dir=tmp_path / "data",
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
        lock_dir=tmp_path / "locks",
        gpu_sharing="training_first",
        republish_s=2.0,
    )
    found.make_directories()
    return found


@pytest.fixture
def database(settings: Settings) -> Generator[Database]:
    found = Database(settings.database)
    found.migrate()
    yield found
    found.dispose()


def test_a_comparison_waits_while_a_run_holds_the_gpu(settings: Settings, database: Database) -> None:
    queue, draining = FakeQueue(), threading.Event()
    turns = GpuTurns(DEVICE, settings, draining.is_set)
    with database.transaction() as session:
        waiting = jobs.insert(session, FIELDS)
    run = gpu.GpuLock.take(DEVICE, settings.gpu_lock_dir)
    assert run
    with turns.turn(database, queue) as is_ours:
        assert not is_ours
    # Messages that come right after are not waited for, so that they do not pile up.
    assert turns._wait_again_at > 0
    with turns.turn(database, queue) as is_ours:
        assert not is_ours
    assert queue.runs == []
    run.release()
    with turns.turn(database, queue) as is_ours:
        assert is_ours
        assert gpu.GpuLock.take(DEVICE, settings.gpu_lock_dir) is None, "no run starts beside a comparison"
    assert queue.runs == [waiting], "the waiting run is woken when the turn ends"
    with gpu.GpuLock.take(DEVICE, settings.gpu_lock_dir) or pytest.fail("the lock stays taken"):
        draining.set()
        with turns.turn(database, queue) as is_ours:
            assert not is_ours, "a worker that shuts down waits for nothing"


def test_a_run_that_was_woken_goes_before_the_comparisons_that_wait(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, draining = FakeQueue(), threading.Event()
    turns = GpuTurns(DEVICE, settings, draining.is_set)
    with database.transaction() as session:
        waiting = jobs.insert(session, FIELDS)
    with turns.turn(database, queue) as is_ours:
        assert is_ours
    assert queue.runs == [waiting]
    # So that it asks once, and does not wait for the run.
    draining.set()
    with turns.turn(database, queue) as is_ours:
        assert not is_ours
        with gpu.GpuLock.take(DEVICE, settings.gpu_lock_dir) or pytest.fail("the run finds the GPU in use"):
            pass
    monkeypatch.setattr(gpu_turn, "_LEFT_FREE_S", 0.0)
    turns._left_free_until = 0.0
    with turns.turn(database, queue) as is_ours:
        assert is_ours, "no worker takes the run"
    monkeypatch.undo()
    with turns.turn(database, queue) as is_ours:
        assert is_ours
        with database.transaction() as session:
            assert jobs.claim_next(session, "w", 60)
    assert queue.runs == [waiting] * 2, "no run is waiting now"


def test_a_comparison_does_not_wait_for_runs_that_may_not_start_here(settings: Settings, database: Database) -> None:
    queue = FakeQueue()
    turns = GpuTurns(DEVICE, settings.model_copy(update={"quota_training_hours": 1.0, "gpu_class": "big"}), lambda: False)
    with database.transaction() as session:
        jobs.insert(session, {**FIELDS, "gpu_class": "other"})
        spent = jobs.insert(session, {**FIELDS, "tenant": "spent"})
        assert jobs.claim_next(session, "w", 60, "GPU-8")
        jobs.insert(session, {**FIELDS, "tenant": "spent"})
        session.execute(text("UPDATE attempts SET started_at = started_at - 7200 WHERE job_id = :id"), {"id": spent})
    for _ in range(2):
        with turns.turn(database, queue) as is_ours:
            assert is_ours
    assert queue.runs == []
    with database.transaction() as session:
        own = jobs.insert(session, {**FIELDS, "gpu_class": "big"})
    with turns.turn(database, queue) as is_ours:
        assert is_ours
    assert queue.runs == [own]


def test_the_worker_answers_in_its_turn_alone(
    settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "nvidia-smi").write_text(SMI)
    (programs / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("MEMORY_FILE", str(tmp_path / "memory"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for module in (generation, generation_worker):
        monkeypatch.setattr(module, "get_settings", lambda: settings)
    generation_worker._gpu_turns.cache_clear()
    held: list[bool] = []

    def answer(most: int | None) -> None:
        assert most == 1, "a run may be waiting for its turn"
        held.append(gpu.GpuLock.take(DEVICE, settings.gpu_lock_dir) is None)

    monkeypatch.setattr(generation_worker._pool_process, "run", answer)
    generation_worker._choose_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-7a"
    assert generation_worker._lock is None, "it is held for an answer, not for good"
    run = gpu.GpuLock.take(DEVICE, settings.gpu_lock_dir)
    assert run
    generation_worker.compare("x")
    assert held == []
    run.release()
    generation_worker.compare("x")
    assert held == [True]
    generation_worker._gpu_turns.cache_clear()
    assert shared_gpu(settings.model_copy(update={"gpu_sharing": "share"})) is None


def test_a_comparison_says_that_it_waits_for_the_gpu(settings: Settings, spec: dict[str, Any]) -> None:
    with TestClient(create_app(settings, FakeQueue()), BASE_URL) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        trained = client.post("/v1/jobs", json=spec).json()["id"]
        with service.database.transaction() as session:
            job = jobs.claim_next(session, "w", 60)
            assert job
            jobs.finish(session, Fence(job.id, 1, str(job.lease_token)), Cause.FINISH, {"artifact_path": "x"})
        client.post("/v1/jobs", json=spec)
        asked = client.post(f"/v1/jobs/{trained}/compare?wait_s=0", json={"prompt": "س"}).json()
        assert asked["waiting_for"] == "worker"
        with service.database.transaction() as session:
            signs.give(session, "generation-worker", "a", {"kind": "compare", "device": "GPU-7a", "trackers": []})
            running = jobs.claim_next(session, "w", 60, device="GPU-7a")
            assert running
        path = f"/v1/jobs/{trained}/comparisons"
        shown = [
            client.post(f"/v1/jobs/{trained}/compare?wait_s=0", json={"prompt": "ص"}).json(),
            client.get(f"{path}/{asked['id']}").json(),
            *client.get(path).json()["comparisons"],
            client.get(f"/v1/tasks/{asked['id']}").json(),
        ]
        assert [each["waiting_for"] for each in shown] == ["gpu"] * 5
        assert client.get("/v1/tasks/" + service.ask(TaskKind.VALIDATE, {}).id).json()["waiting_for"] == "worker"
        with service.database.transaction() as session:
            signs.give(session, "generation-worker", "b", {"kind": "compare", "device": None, "trackers": []})
        assert client.get(f"{path}/{asked['id']}").json()["waiting_for"] == "worker", "another worker answers on its CPU"
        with service.database.transaction() as session:
            signs.end(session, "generation-worker", "b")
            jobs.finish(session, Fence(running.id, 1, str(running.lease_token)), Cause.FINISH)
        assert client.get(f"{path}/{asked['id']}").json()["waiting_for"] == "worker"


def test_a_worker_tells_which_gpu_it_takes_turns_on(settings: Settings, database: Database) -> None:
    own = worker_signs.Signs(database, settings, "compare", "GPU-7a")
    own.give()
    with database.reading() as session:
        assert list(signs.devices(session, "compare")) == ["GPU-7a"]
    own.end()
    with database.reading() as session:
        assert signs.parts(session) == []


def test_the_older_name_of_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for old, new in (("own_gpu", "own"), ("shared_gpu", "share"), ("cpu", None)):
        monkeypatch.setenv("TAFDIL_GENERATION_DEVICE", old)
        assert Settings().gpu_sharing == new
    monkeypatch.setenv("TAFDIL_GPU_SHARING", "training_first")
    with pytest.raises(ValidationError, match="the older name of TAFDIL_GPU_SHARING"):
        Settings()
