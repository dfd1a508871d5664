"""What comes at an awkward moment: requests at the very end, hours of waiting reports, processes that cannot be killed."""

import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from torch.utils.data import DataLoader, get_worker_info

from jobs.database import Database
from jobs.records import JobRecord
from jobs.repository import attempts, events, jobs
from jobs.repository.jobs import Fence
from jobs.settings import Settings
from jobs.states import Cause, JobState, Request
from tests.fakes import FakeQueue
from tests.integration.test_repository import FIELDS
from tests.stack import until
from trainer_core.methods.tokenized import _WithOwnColumns
from worker import dispatcher, gpu, training_process
from worker.reporter import AttemptReporter
from worker.supervisor import Supervisor
from worker.training_process import TrainingProcess


def running(database: Database, lease_s: float = 60, **fields: Any) -> Fence:
    with database.transaction() as session:
        jobs.insert(session, {**FIELDS, **fields})
        job = jobs.claim_next(session, "worker", lease_s)
        assert job is not None
        return Fence(job.id, job.attempt, str(job.lease_token))


def job_of(database: Database, job_id: str) -> JobRecord:
    with database.reading() as session:
        found = jobs.get(session, job_id)
        assert found is not None
        return found


@pytest.mark.parametrize(
    ("asked", "cause", "state"),
    [
        (Request.CANCEL, Cause.PREEMPT, JobState.CANCELLED),
        (Request.CANCEL_SAVING, Cause.PAUSE, JobState.CANCELLED),
        (Request.PAUSE, Cause.PREEMPT, JobState.PAUSED),
        (None, Cause.PREEMPT, JobState.QUEUED),
        (Request.CANCEL, Cause.FINISH, JobState.SUCCEEDED),
    ],
)
def test_a_request_in_the_last_moment_is_done(
    database: Database, asked: Request | None, cause: Cause, state: JobState
) -> None:
    """The worker looked before it was asked, and ends its attempt without knowing of it."""
    fence = running(database)
    with database.transaction() as session:
        if asked:
            assert jobs.request(session, fence.job_id, asked)
    with database.transaction() as session:
        assert jobs.finish(session, fence, cause, {}, {"checkpoint": True}, reason="the worker was shut down")
    job = job_of(database, fence.job_id)
    assert (job.state, job.requested) == (state, None)
    if state is JobState.CANCELLED:
        assert (job.error or {})["code"] == "cancelled"
        with database.reading() as session:
            (attempt,) = attempts.of_job(session, fence.job_id)
        assert (attempt.outcome, attempt.reason) == ("cancelled", "cancelled on request")


def test_reports_of_hours_do_not_cost_the_lease(database: Database, settings: Settings) -> None:
    """The database comes back and much waits for it: more than can be stored within a lease."""
    settings = settings.model_copy(update={"lease_s": 1.5, "heartbeat_s": 0.3, "request_poll_s": 0.2})
    fence = running(database, settings.lease_s)
    reporter = AttemptReporter(database, FakeQueue(), settings, fence)
    for step in range(1, 1501):
        reporter.receive({"type": "metrics", "step": step, "values": {"loss": 1 / step}})
    seen: list[Request | None] = []
    began = time.monotonic()
    reporter.start()
    closing = threading.Thread(target=reporter.close, args=(lambda: False,))
    closing.start()
    with database.transaction() as session:
        jobs.request(session, fence.job_id, Request.PAUSE)
    while closing.is_alive():
        with database.transaction() as session:
            assert jobs.reap(session, 3) == []
        seen.append(reporter.requested)
        time.sleep(0.05)
    assert time.monotonic() - began > settings.lease_s, "it took longer than a lease, or this shows nothing"
    assert not reporter.is_fenced
    assert Request.PAUSE in seen
    with database.reading() as session:
        assert events.after(session, fence.job_id, 1500, limit=5)


def test_reports_that_cannot_be_stored_end_the_training(database: Database, settings: Settings) -> None:
    reporter = AttemptReporter(database, FakeQueue(), settings, running(database))
    reporter.receive({"type": "checkpoint"} | {"step": 1})
    reporter._waiting.append(("no number", None))  # type: ignore[arg-type]
    reporter.start()
    until(lambda: reporter.is_fenced)
    reporter.stop()


def test_a_class_whose_last_job_is_claimed_during_a_round(database: Database, settings: Settings) -> None:
    with database.transaction() as session:
        jobs.insert(session, {**FIELDS, "gpu_class": "a100"})
        session.execute(text("UPDATE jobs SET published_at = NULL"))

    class Claiming(FakeQueue):
        def waiting(self, gpu_class: str | None) -> int:
            with database.transaction() as session:
                jobs.claim_next(session, "worker", 60, gpu_class="a100")
            return 0

    original = jobs.queued_by_class

    def after_a_claim(session: Any) -> dict[str | None, int]:
        queue.waiting("a100")
        return original(session) if not database.serves_one_host else {}

    queue = Claiming()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher.jobs, "queued_by_class", after_a_claim)
        if database.serves_one_host:
            # SQLite reads a snapshot, so the claim must be feigned there.
            patch.setattr(queue, "waiting", lambda _: 0)
        dispatcher.run_round(database, queue, settings)
    assert queue.runs == []


def test_a_committed_job_outlives_a_power_failure(database: Database) -> None:
    if database.serves_one_host:
        with database.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    else:
        with database.engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


# -- processes


@pytest.fixture
def freezer() -> Generator[Path]:
    """A control group that can be frozen: what is in it cannot be killed until it is thawed."""
    group = Path("/sys/fs/cgroup/freezer") / f"tafdil-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("this machine lets nobody freeze a control group (/sys/fs/cgroup/freezer)")
    yield group
    (group / "freezer.state").write_text("THAWED")
    until(lambda: not (group / "tasks").read_text())
    group.rmdir()


def test_a_process_that_cannot_be_killed_is_left_to_the_kernel(
    freezer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_process, "_UNKILLABLE_S", 0.5)
    process = TrainingProcess([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path, {}, None)
    (freezer / "tasks").write_text(str(process.pid))
    (freezer / "freezer.state").write_text("FROZEN")
    code, left = process.end()
    assert code is None
    assert left == [process.pid]
    (freezer / "freezer.state").write_text("THAWED")
    assert process._process.wait(240) == -signal.SIGKILL


def test_what_cannot_be_started_leaks_nothing(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for command, folder in ((["/no/such/program"], tmp_path), ([sys.executable], tmp_path / "gone")):
        with pytest.raises(OSError):  # noqa: PT011
            TrainingProcess(command, folder, {}, None)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


class _Rows:
    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"row": index}


def test_a_loader_outlives_a_term_for_all_processes() -> None:
    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        info = get_worker_info()
        return {"worker": info.id if info else -1, "pid": os.getpid(), "count": len(examples)}

    loader = DataLoader(_Rows(), batch_size=4, num_workers=1, collate_fn=_WithOwnColumns(collate), prefetch_factor=2)  # type: ignore[arg-type]
    seen = 0
    for batch in loader:
        assert batch["pid"] != os.getpid()
        os.kill(batch["pid"], signal.SIGTERM)
        seen += batch["count"]
    assert seen == 400


def test_nothing_is_claimed_while_gpus_cannot_be_told(
    database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Unable to determine the device handle'; exit 255\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices = tmp_path / "dev"
    devices.mkdir()
    monkeypatch.setattr(gpu, "_DEVICES", devices)
    assert gpu.visible_gpu() is None, "a machine with the program and without a GPU trains on its CPU"
    (devices / "nvidia0").touch()
    with pytest.raises(gpu.GpuUnknown, match="nvidia-smi fails"):
        gpu.visible_gpu()
    with database.transaction() as session:
        job_id = jobs.insert(session, FIELDS)
    supervisor = Supervisor(database, FakeQueue(), settings, worker="w", is_draining=lambda: False)
    assert supervisor.run_next() is False
    assert job_of(database, job_id).state == JobState.QUEUED
