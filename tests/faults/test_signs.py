"""Parts that stand still: readiness names them, health checks fail, and the local stack starts them again."""

import socket
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import text

from api.app import create_app
from jobs.database import Database
from jobs.repository import signs
from jobs.settings import Settings
from tafdil.life_watch import LifeWatch, Look, away_of, seen
from tests.api import BASE_URL, error_of
from tests.fakes import FakeQueue
from tests.faults.conftest import StartRig
from tests.rig.stack import job_spec
from tests.stack import ENOUGH_S, until
from worker import health

TRAIN: dict[str, Any] = {"kind": "train", "gpu_class": None, "device": None, "trackers": ["tensorboard"]}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = Settings(data_dir=tmp_path / "data", redis_url=SecretStr("redis://127.0.0.1:1/0"))
    found.make_directories()
    return found


def test_signs_come_age_and_go(database: Database) -> None:
    host = socket.gethostname()
    with database.transaction() as session:
        for name in ("train", "train", "checks"):
            signs.give(session, name, host, {**TRAIN, "kind": name})
        signs.give(session, "train", "elsewhere", {**TRAIN, "gpu_class": "big", "trackers": ["wandb"]})
    with database.transaction() as session:
        assert [(part.name, part.silent_s < 60) for part in signs.parts(session)] == [
            ("checks", True),
            ("train", True),
            ("train", True),
        ]
        assert signs.trackers(session, None) == {"tensorboard", "wandb"}
        assert signs.trackers(session, "big") == {"wandb"}
        assert signs.trackers(session, "other") is None
        session.execute(text("UPDATE signs_of_life SET seen_at = seen_at - 4000 WHERE name = 'checks'"))
        session.execute(text("UPDATE signs_of_life SET seen_at = seen_at - 500 WHERE host = 'elsewhere'"))
        signs.forget(session)
        signs.end(session, "train", host)
        (left,) = signs.parts(session)
        assert (left.host, 499 < left.silent_s < 600) == ("elsewhere", True)


def test_what_is_away_is_named_and_the_service_stays_ready(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(health, "get_settings", lambda: settings)
    monkeypatch.setattr("jobs.queue.CeleryQueue.is_up", lambda _: True)
    with TestClient(create_app(settings, FakeQueue()), BASE_URL) as client:
        database: Database = client.app.state.service.database  # type: ignore[attr-defined]
        assert health.main() == 0, "a part that has just started"
        with database.transaction() as session:
            signs.give(session, "train", socket.gethostname(), TRAIN)
            signs.give(session, "checks", "elsewhere", {**TRAIN, "kind": "checks"})
        found = client.get("/readyz").json()
        assert [(part["name"], part["kind"], part["is_away"]) for part in found["parts"]] == [
            ("checks", "checks", False),
            ("train", "train", False),
        ]
        assert health.main() == 0
        with database.transaction() as session:
            session.execute(text("UPDATE signs_of_life SET seen_at = seen_at - 130 WHERE name = 'checks'"))
        assert health.main() == 0, "another host's part"
        with database.transaction() as session:
            session.execute(text("UPDATE signs_of_life SET seen_at = seen_at - 130 WHERE name = 'train'"))
        reply = client.get("/readyz")
        assert (reply.status_code, reply.json()["ready"]) == (200, True)
        assert [part["is_away"] for part in reply.json()["parts"]] == [True, True]
        assert "elsewhere" not in reply.text, "no names of hosts"
        assert health.main() == 1
        assert "train: no sign of life for 13" in capsys.readouterr().out
        assert 'tafdil_silence_seconds{part="train"}' in client.get("/metrics").text


def test_a_tracker_that_no_worker_has_is_refused_at_submit(
    settings: Settings, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**spec, "report_to": ["tensorboard", "wandb"]}
    with TestClient(create_app(settings, FakeQueue()), BASE_URL) as client:
        database: Database = client.app.state.service.database  # type: ignore[attr-defined]
        # No worker is known yet: what this machine has decides.
        monkeypatch.setattr("trainer_core.trackers.installed", lambda: ["tensorboard", "wandb"])
        assert client.post("/v1/jobs", json=asked).status_code == 202
        with database.transaction() as session:
            signs.give(session, "train", "a", TRAIN)
        for path in ("/v1/jobs", "/v1/jobs/validate"):
            error = error_of(client.post(path, json=asked), 422, "spec_invalid")
            assert error["details"][0]["field"] == "report_to"
            assert error["details"][0]["params"] == {"names": ["wandb"], "packages": ["wandb"]}
        with database.transaction() as session:
            signs.give(session, "train", "b", {**TRAIN, "gpu_class": "big", "trackers": ["wandb"]})
        assert client.post("/v1/jobs", json=asked).status_code == 202
        refused = client.post("/v1/jobs", json={**asked, "gpu_class": "big"})
        assert refused.json()["error"]["details"][0]["params"]["names"] == ["tensorboard"]


class Clock:
    """A clock that a test moves, and what a look finds."""

    def __init__(self) -> None:
        self.now, self.found = 1000.0, Look(alive=["api", "train", "dispatcher"])
        self.watch = LifeWatch(lambda: self.found, 120, lambda: self.now)

    def after(self, seconds: float, *silent: str, launched_at: float = 1000.0) -> list[str]:
        """What hangs after a time in which looks find some parts silent."""
        names = ["api", "train", "dispatcher", "valkey"]
        self.found = Look(silent, [name for name in names if name not in silent])
        hung: list[str] = []
        for _ in range(int(seconds)):
            self.now += 1
            hung += self.watch.hung(dict.fromkeys(names, launched_at))
        return hung


def test_a_part_hangs_when_it_stays_silent_look_after_look() -> None:
    clock = Clock()
    assert clock.after(600) == []
    assert clock.after(25, "train") == [], "a machine that slept: it speaks again"
    assert clock.after(10) == []
    assert clock.after(25, "train") == []
    assert clock.after(10, "train") == ["train"]
    assert clock.after(110, "api") == []
    assert clock.after(10, "train") == [], "the API was away: nothing is known of how long"
    assert clock.after(126, "api") == ["api"]
    assert clock.after(126, "valkey") == ["valkey"]


def test_a_part_that_starts_has_time() -> None:
    """Its last sign is from before it was started; ten minutes later it should have given one."""
    clock = Clock()
    clock.after(10)
    begun = clock.now
    assert clock.after(590, "train", launched_at=begun) == []
    assert clock.after(20, "train", launched_at=begun) == ["train"]


def test_a_part_is_away_only_if_no_host_hears_of_it() -> None:
    """The sign that it gave before its host was renamed stays for an hour."""
    parts = [("train", False), ("train", True), ("checks", True), ("checks", False), ("exports", True), ("exports", True)]
    away = away_of([{"name": name, "is_away": is_away} for name, is_away in parts])
    assert away == {"train": False, "checks": False, "exports": True}


def test_nothing_hangs_when_all_parts_are_silent_at_once() -> None:
    """Then they lack something that all of them need, and a restart would help none."""
    parts = [{"name": name, "is_away": True} for name in ("train", "dispatcher")]
    assert seen({"parts": parts, "broker": "up"}) == Look([], ["api", "valkey"])
    assert seen({"parts": parts, "broker": "down"}) == Look(["valkey"], ["api"])
    parts[0]["is_away"] = False
    assert seen({"parts": parts, "broker": "up"}) == Look(["dispatcher"], ["api", "train", "valkey"])


def test_what_stands_still_is_started_again(start_rig: StartRig) -> None:
    """SIGSTOP to the dispatcher, a worker, a worker's pool process and the API of a whole service, one after the other."""
    settings = {"TAFDIL_PART_LIMIT_S": "6", "TAFDIL_HEARTBEAT_S": "0.5"}
    rig, client = start_rig(workers=2, settings=settings)
    rig._life.limit_s = 6.0
    names = {"dispatcher-1", "train-worker-1", "train-worker-2"}
    until(lambda: {part["name"] for part in client.readiness()["parts"]} == names)
    for name, pid in (
        ("dispatcher-1", rig.pid("dispatcher-1")),
        ("train-worker-1", rig.pid("train-worker-1")),
        ("train-worker-2", rig.pool_children("train-worker-2")[0]),
        ("api", rig.pid("api")),
    ):
        before = rig.pid(name)
        rig.stand_still(pid)
        until(lambda name=name, before=before: rig.watch() or rig.pid(name) != before)
    until(lambda: rig.watch() or client.ready())
    job_id = client.submit(job_spec(5))["id"]
    until(lambda: rig.watch() or client.job(job_id)["state"] == "succeeded", ENOUGH_S)
