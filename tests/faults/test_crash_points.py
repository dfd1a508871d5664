"""Death at every commit, publish and rename, before it and after it: whatever point it is, the next process sets it right.

One process plays all parts (API, dispatcher, supervisor) and is killed at its n-th point; a second one then finds what is
left. The training is a process of its own and has points of its own: the renames that publish its checkpoints.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.database import Database
from jobs.queue import CeleryQueue
from jobs.records import JobRecord
from jobs.repository import jobs
from jobs.service import JobService
from jobs.settings import Settings
from jobs.spec import JOB_SPEC
from jobs.states import JobState
from tests.rig import failpoints, history
from tests.rig.invariants import violations
from tests.rig.stack import ROWS, job_spec
from tests.stack import ENOUGH_S
from worker.dispatcher import run_round
from worker.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[2]
# A run of the whole story passes about this many; each takes seconds, so a plain test run takes every few of them.
COMMITS, PUBLISHES, RENAMES = 110, 6, 6
STRIDE = int(os.environ.get("TAFDIL_TEST_CRASH_STRIDE", "23"))
KEYS = ("first", "second", "third")


class UnsentQueue(CeleryQueue):
    """The real queue with a broker that takes everything and delivers nothing: workers here look by themselves."""

    def __init__(self) -> None:
        class Taker:
            def send_task(self, *_: Any, **__: Any) -> bool:
                return True

            def publish(self, *_: Any) -> int:
                return 0

            def llen(self, *_: Any) -> int:
                return 0

        self._publisher: Any = Taker()
        self._away_until = 0.0
        self._redis: Any = Taker()
        self._channel = self._prefix = ""


def settings_of(folder: Path, url: str) -> Settings:
    found = Settings(
        data_dir=folder / "data",
        database_url=url,  # pyright: ignore[reportArgumentType]
        lease_s=1.2,
        heartbeat_s=0.3,
        dispatch_s=0.2,
        republish_s=0.2,
        request_poll_s=0.05,
    )
    found.make_directories()
    (found.data_dir / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    return found


def play(settings: Settings) -> bool:
    """Submits three jobs (as often as needed, with their keys), pauses and resumes one, and runs everything to its end."""
    database = Database(settings.database)
    queue = UnsentQueue()
    service = JobService(database, queue, settings)
    trainer = (sys.executable, "-m", "tests.rig.trainer")
    supervisor = Supervisor(database, queue, settings, worker="w", is_draining=lambda: False, trainer=trainer)
    found = []
    for key in KEYS:
        sent = job_spec(6, save_steps=2, behaviour={"step_s": 0.0})
        found.append(service.submit(JOB_SPEC.validate_python(sent), sent, key))
    if found[1].state == JobState.QUEUED and found[1].attempt == 0:
        service.pause(found[1].id)
    ends_at = time.monotonic() + ENOUGH_S
    while time.monotonic() < ends_at:
        run_round(database, queue, settings)
        while supervisor.run_next():
            run_round(database, queue, settings)
        for job in service.jobs(10, state="paused"):
            service.resume(job.id)
        if all(JobState(job.state).is_final for job in service.jobs(10)):
            database.dispose()
            return True
        time.sleep(0.1)
    return False


def in_process(folder: Path, url: str, point: str | None, training_point: str | None = None) -> int:
    """Plays in a process of its own, which dies at the point. Returns its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            os.environ[history.VARIABLE] = str(folder / "history.jsonl")
            os.environ["PYTHONPATH"] = f"{ROOT / 'tests/rig/site'}:{ROOT}"
            os.environ.pop("TAFDIL_TEST_FAILPOINT", None)
            if training_point:
                os.environ["TAFDIL_TEST_FAILPOINT"] = training_point
            settings = settings_of(folder, url)
            if point:
                failpoints.install(point)
            code = 0 if play(settings) else 1
            (folder / "passed.json").write_text(json.dumps(failpoints.passed))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def check(folder: Path, url: str) -> None:
    """All three jobs ended well, once each, and their stories are legal."""
    database = Database(url)
    with database.transaction() as session:
        found = violations(session, history.read(folder / "history.jsonl"))
        states = {job.idempotency_key: job.state for job in session.query(JobRecord)}
        page = jobs.page(session, "default", 10)
        for job in page:
            assert (settings_of(folder, url).runs_dir / str(job.artifact_path) / "result.json").is_file()
    database.dispose()
    assert not any(found.values()), found
    assert states == dict.fromkeys(KEYS, JobState.SUCCEEDED)


@pytest.fixture
def place(tmp_path: Path, database: Database, database_url: str) -> tuple[Path, str]:
    database.dispose()
    return tmp_path, database_url


def points() -> list[str]:
    numbers = {"commit": COMMITS, "publish": PUBLISHES}
    every = [
        f"{kind}:{n}:{side}" for kind, last in numbers.items() for n in range(1, last + 1) for side in ("before", "after")
    ]
    return every[:: max(1, STRIDE)]


@pytest.mark.parametrize("point", points())
def test_the_service_dies(place: tuple[Path, str], point: str) -> None:
    folder, url = place
    died = in_process(folder, url, point)
    assert died in (-9, 0), "it dies at its point, or has fewer"
    assert in_process(folder, url, None) == 0
    check(folder, url)


@pytest.mark.parametrize("point", [f"rename:{n}:{side}" for n in range(1, 4) for side in ("before", "after")])
def test_the_training_dies_around_the_rename_of_a_checkpoint(place: tuple[Path, str], point: str) -> None:
    """Each attempt dies at that rename, as often as there is one: the losses end when a checkpoint is there."""
    folder, url = place
    in_process(folder, url, None, point)
    database = Database(url)
    with database.transaction() as session:
        for job in jobs.page(session, "default", 10):
            kept = sorted((settings_of(folder, url).runs_dir / job.id).glob("attempt-*/output/checkpoint-*"))
            assert all((path / "manifest.json").is_file() for path in kept), "a checkpoint is whole or absent"
            assert job.state in (JobState.SUCCEEDED, JobState.FAILED)
            if job.state == JobState.FAILED:
                assert (job.error or {})["code"] == "poisoned"
                assert point.startswith("rename:1:before"), "with a checkpoint saved each time, the job gets to its end"
    database.dispose()


def test_the_story_has_these_points(place: tuple[Path, str]) -> None:
    """The sweep is not of points that nobody passes."""
    folder, url = place
    assert in_process(folder, url, "count") == 0
    passed = json.loads((folder / "passed.json").read_text())
    assert passed["commit"] >= 60
    assert passed["publish"] >= 3
    check(folder, url)
