"""The report about a dataset: asked once, computed by the checks worker, kept with the dataset, deleted with it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from jobs.access import LOCAL
from jobs.database import Database
from jobs.dataset_service import DatasetService
from jobs.repository import tasks
from jobs.settings import Settings
from jobs.states import TaskKind
from tests.api import client, database, error_of, queue
from tests.fakes import FakeQueue
from trainer_core.errors import error_dict
from worker import checks
from worker.desk import Desk

__all__ = ["client", "database", "queue"]

MODEL = "tafdil/tiny-arabic-qwen-2"
ROWS = [
    {
        "prompt": f"ما معنى الكلمة رقم {n}؟",
        "chosen": f"معناها، كما أظن، {n}",
        "rejected": f"معناها كما أظن {n}",
        "dialect": "msa",
    }
    for n in range(300)
]


def upload(client: TestClient, rows: list[dict[str, Any]], name: str = "rows") -> str:
    body = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return client.post("/v1/datasets", content=body.encode(), params={"name": name}).raise_for_status().json()["id"]


def work(database: Database, settings: Settings) -> int:
    """Answers every waiting report as the checks worker does. Returns how many there were."""
    done = 0
    while True:
        with database.transaction() as session:
            task = tasks.claim_next(session, [TaskKind.REPORT], 60)
        if task is None:
            return done
        result = checks.ANSWERS[TaskKind.REPORT](Desk(task, database, settings))
        with database.transaction() as session:
            tasks.finish(session, task, json.loads(json.dumps(result)))
        done += 1


def test_a_report_is_computed_once_for_the_same_rows_and_words_itself_in_the_readers_language(
    client: TestClient, database: Database, settings: Settings, queue: FakeQueue
) -> None:
    path = f"/v1/datasets/{upload(client, ROWS)}/report"
    waiting = client.get(path, params={"wait_s": 0})
    assert waiting.status_code == 202
    assert waiting.json()["waiting_for"] == "worker"
    assert client.get(path, params={"wait_s": 0}).json()["id"] == waiting.json()["id"], "nobody asks for it twice"
    assert queue.tasks == [(waiting.json()["id"], TaskKind.REPORT)]
    assert work(database, settings) == 1
    found = client.get(path)
    assert found.status_code == 200
    report = found.json()["result"]
    assert (report["kind"], report["rows"], report["prompts"], report["tokens"]) == ("pairs", 300, 300, None)
    (named,) = report["shortcuts"]["named"]
    assert (named["rule"], named["direction"], named["share"]) == ("commas", "more", 1.0)
    assert named["low"] > 0.9
    assert named["message"].startswith("“more commas” picks the chosen answer in 100% of the pairs")
    assert named["examples"][0]["chosen"] == ROWS[0]["chosen"]
    assert report["findings"][0]["code"] == "shortcut"
    assert report["varieties"]["msa"]["chosen"]["texts"] == 300
    polled = client.get(waiting.headers["location"], headers={"Accept-Language": "ar"}).json()["result"]
    assert polled["shortcuts"]["named"][0]["message"].startswith(
        "القاعدة «فواصل أكثر» تصيب الإجابة الأفضل في 100% من الأزواج"
    )
    assert polled["shortcuts"]["named"][0]["advice"]["message"].startswith("استعمل علامات الترقيم")
    assert polled["findings"][0]["message"] == polled["shortcuts"]["named"][0]["message"]
    # The same rows under another name, and asked for again.
    other = client.get(f"/v1/datasets/{upload(client, ROWS, 'again')}/report")
    assert other.json()["id"] == waiting.json()["id"]
    assert len(queue.tasks) == 1


def test_tokens_are_counted_for_the_model_that_is_named(
    client: TestClient, database: Database, settings: Settings, queue: FakeQueue
) -> None:
    path = f"/v1/datasets/{upload(client, ROWS[:40])}/report"
    for name, status, code in (("../etc", 422, "spec_invalid"), ("nobody/nothing", 422, "model_not_found")):
        error_of(client.get(path, params={"model": name}), status, code)
    assert queue.tasks == []
    client.get(path, params={"wait_s": 0, "model": MODEL})
    assert work(database, settings) == 1
    tokens = client.get(path, params={"model": MODEL}).json()["result"]["tokens"]
    assert tokens["model"] == MODEL
    assert tokens["varieties"]["msa"]["next_to_msa"] == 1.0
    assert 1 < tokens["sides"]["chosen"]["tokens_per_word"] < 4
    note = client.get(path, params={"model": MODEL}).json()["result"]["shortcuts"]["note"]
    assert note["message"].startswith("40 rows are not much to judge by")


def test_a_report_is_deleted_with_its_dataset_and_asked_again_after_a_failure(
    client: TestClient, database: Database, settings: Settings, queue: FakeQueue
) -> None:
    dataset = upload(client, ROWS[:20])
    path = f"/v1/datasets/{dataset}/report"
    first = client.get(path, params={"wait_s": 0}).json()["id"]
    with database.transaction() as session:
        task = tasks.claim_next(session, [TaskKind.REPORT], 60)
        assert task
        tasks.finish(session, task, None, error_dict("internal", "it broke"))
    second = client.get(path, params={"wait_s": 0}).json()["id"]
    assert second != first
    assert work(database, settings) == 1
    assert client.get(f"/v1/tasks/{second}").json()["state"] == "succeeded"
    assert client.delete(f"/v1/datasets/{dataset}").status_code == 200
    error_of(client.get(path), 404, "not_found")
    error_of(client.get(f"/v1/tasks/{second}"), 404, "not_found")
    again = upload(client, ROWS[:20])
    assert client.get(f"/v1/datasets/{again}/report", params={"wait_s": 0}).status_code == 202


def test_a_report_that_two_datasets_share_outlives_the_first(
    client: TestClient, database: Database, settings: Settings
) -> None:
    first, second, third = (upload(client, ROWS[:20], name) for name in "abc")
    task_id = client.get(f"/v1/datasets/{first}/report", params={"wait_s": 0}).json()["id"]
    assert client.get(f"/v1/datasets/{second}/report", params={"wait_s": 0}).json()["id"] == task_id
    assert client.delete(f"/v1/datasets/{first}").status_code == 200
    with database.transaction() as session:
        task = tasks.claim_next(session, [TaskKind.REPORT], 60)
    assert task
    assert (task.id, task.request["dataset_id"]) == (task_id, second)
    # In the middle of its task.
    assert client.delete(f"/v1/datasets/{second}").status_code == 200
    result = checks.ANSWERS[TaskKind.REPORT](Desk(task, database, settings))
    with database.transaction() as session:
        assert tasks.finish(session, task, json.loads(json.dumps(result)))
    found = client.get(f"/v1/datasets/{third}/report").json()
    assert (found["id"], found["result"]["rows"]) == (task_id, 20)
    assert client.delete(f"/v1/datasets/{third}").status_code == 200
    error_of(client.get(f"/v1/tasks/{task_id}"), 404, "not_found")


def test_another_tenant_gets_a_report_of_its_own(client: TestClient, database: Database, settings: Settings) -> None:
    own = upload(client, ROWS[:20])
    task = client.get(f"/v1/datasets/{own}/report", params={"wait_s": 0}).json()["id"]
    service = DatasetService(database, FakeQueue(), settings, replace(LOCAL, tenant="other"))
    receiving = service.begin_upload("same rows")
    receiving.write((settings.datasets_dir / f"{own}.rows").read_bytes())
    theirs = receiving.finish()
    assert service.report(theirs.id).id != task


@pytest.mark.parametrize("wanted", [True, False])
def test_an_upload_asks_for_the_report_unless_the_settings_forbid_it(
    database: Database, settings: Settings, tmp_path: Path, wanted: bool
) -> None:
    queue = FakeQueue()
    queue.is_broken = True
    service = DatasetService(database, queue, settings.model_copy(update={"report_at_upload": wanted}))
    receiving = service.begin_upload("rows")
    receiving.write("".join(json.dumps(row) + "\n" for row in ROWS[:20]).encode())
    dataset = receiving.finish()
    with database.transaction() as session:
        task = tasks.claim_next(session, [TaskKind.REPORT], 60)
    assert (task is not None) == wanted
    if task:
        assert task.request["dataset_id"] == dataset.id
        assert service.report(dataset.id).id == task.id


@pytest.mark.parametrize("error", [OperationalError("", {}, Exception("it is away")), OSError("the disk is away")])
def test_an_upload_is_stored_whatever_happens_after_its_commit(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    service = DatasetService(database, FakeQueue(), settings.model_copy(update={"report_at_upload": True}))
    receiving = service.begin_upload("rows")
    receiving.write("".join(json.dumps(row) + "\n" for row in ROWS[:20]).encode())

    def away() -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(database, "reading", away)
        stored = receiving.finish()
    found = service.dataset(stored.id)
    assert (found.number, found.created_at, found.reading) == (stored.number, stored.created_at, stored.reading)
    assert len(service.rows(stored.id, 1, 50)) == 20
