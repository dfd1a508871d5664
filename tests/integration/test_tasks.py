"""Tasks take turns, join equals, have a quota, are cancelled and lost, as jobs are. On SQLite and PostgreSQL."""

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from api.app import create_app
from jobs.artifacts import ArtifactFile, ArtifactKind
from jobs.database import Database
from jobs.errors import DatabaseError
from jobs.records import TaskRecord
from jobs.repository import artifacts, jobs, tasks
from jobs.service import JobService
from jobs.settings import Settings
from jobs.states import Cause, TaskKind, TaskState, TaskWorker
from tests.api import BASE_URL, client, database, error_of, queue, run
from tests.conftest import DATA
from tests.fakes import FakeQueue

__all__ = ["client", "database", "queue"]

CHECKS = TaskWorker.CHECKS.kinds


def ask(database: Database, tenant: str, kind: TaskKind = TaskKind.VALIDATE) -> str:
    with database.transaction() as session:
        return tasks.insert(session, kind, tenant, {})


def claim(database: Database, *, idle_tenants_only: bool = False) -> TaskRecord | None:
    with database.transaction() as session:
        return tasks.claim_next(session, CHECKS, 60, idle_tenants_only=idle_tenants_only)


def claimed(database: Database) -> TaskRecord:
    found = claim(database)
    assert found
    return found


def answer(database: Database) -> str:
    """Claims the next task and answers it. Returns its id."""
    task = claimed(database)
    with database.transaction() as session:
        assert tasks.finish(session, task, {})
    return task.id


def trained(database: Database, client: TestClient, spec: dict[str, Any]) -> str:
    fence = run(database, client, spec)
    with database.transaction() as session:
        jobs.finish(session, fence, Cause.FINISH, {"artifact_path": "x"})
    return fence.job_id


def test_tenants_take_turns_however_many_checks_one_asks_for(database: Database) -> None:
    many = [ask(database, "many") for _ in range(30)]
    assert [answer(database) for _ in range(3)] == many[:3]
    # A preview is answered by the same worker, so it waits in the same queue.
    few = [ask(database, "few", kind) for kind in (TaskKind.PREVIEW, TaskKind.VALIDATE)]
    assert [answer(database) for _ in range(5)] == [many[3], few[0], many[4], few[1], many[5]]
    # Who was away comes back to where the queue is, neither before it nor behind it.
    [answer(database) for _ in range(10)]
    late = ask(database, "late")
    assert late in [answer(database) for _ in range(2)]
    # Comparisons have a queue of their own.
    with database.transaction() as session:
        tasks.insert(session, TaskKind.COMPARE, "many", {})
        asked = tasks.claim_next(session, [TaskKind.COMPARE], 60)
        assert asked
        assert (asked.kind, asked.turn) == (TaskKind.COMPARE, 1)


def test_a_tenant_with_nothing_running_comes_first(database: Database) -> None:
    loud = [ask(database, "loud") for _ in range(4)]
    assert [claimed(database).id for _ in range(2)] == loud[:2], "two workers are free"
    quiet = [ask(database, "quiet") for _ in range(2)]
    calm = ask(database, "calm")
    assert [claimed(database).id for _ in range(2)] == [quiet[0], calm]
    assert claim(database, idle_tenants_only=True) is None
    with database.reading() as session:
        assert not tasks.is_waiting(session, CHECKS, idle_tenants_only=True)
        assert tasks.is_waiting(session, CHECKS)
    assert claimed(database).id == quiet[1], "one runs for it, and two for the other"


def test_a_report_that_nobody_waits_for_keeps_no_dry_run_waiting(database: Database) -> None:
    first, second = (ask(database, "a", TaskKind.REPORT) for _ in range(2))
    check = ask(database, "a")
    assert claimed(database).id == check, "although the reports are older"
    assert claimed(database).id == first
    assert claim(database, idle_tenants_only=True) is None, "the spare lane is for what somebody waits for"
    with database.transaction() as session:
        assert tasks.finish(session, tasks.get(session, check) or pytest.fail("it is gone"), {})
    another = ask(database, "a")
    spare = claim(database, idle_tenants_only=True)
    assert spare
    assert spare.id == another, "while the tenant's own report is computed"
    assert claimed(database).id == second


def test_a_lost_task_pauses_and_a_cancelled_one_stays_cancelled(database: Database) -> None:
    first = ask(database, "a")
    task = claimed(database)
    with database.transaction() as session:
        assert tasks.lose(session, task, 3, "it died", pause_s=3600)
        assert not tasks.lose(session, task, 3, "it died", pause_s=3600), "once"
        assert not tasks.finish(session, task, {})
        assert tasks.unclaimed(session, 0) == []
    assert claim(database) is None
    with database.transaction() as session:
        assert tasks.cancel_queued(session, first)
        assert not tasks.request_cancel(session, first)
        found = tasks.get(session, first)
        assert found
        assert (found.state, (found.error or {})["code"]) == (TaskState.CANCELLED, "cancelled")


@pytest.mark.parametrize("end", ["lose", "release", "reap", "cancel_held"])
def test_a_cancel_is_done_whatever_becomes_of_the_worker(database: Database, end: str) -> None:
    task_id = ask(database, "a")
    task = claimed(database)
    with database.transaction() as session:
        assert tasks.request_cancel(session, task_id)
        assert not tasks.request_cancel(session, task_id)
        assert tasks.requested(session, task) == "cancel"
    with database.transaction() as session:
        if end == "lose":
            assert tasks.lose(session, task, 3, "it died")
        elif end == "release":
            assert tasks.release(session, task)
        elif end == "cancel_held":
            assert tasks.cancel_held(session, task)
        else:
            tasks.renew(session, task, -1)
            assert tasks.reap(session, 3) == [task_id]
    with database.reading() as session:
        assert tasks.requested(session, task) is None
        found = tasks.get(session, task_id)
        assert found
        assert (found.state, found.requested, found.lease_token) == (TaskState.CANCELLED, None, None)


def test_the_answer_wins_over_a_cancel_that_comes_too_late(database: Database) -> None:
    task_id = ask(database, "a")
    task = claimed(database)
    with database.transaction() as session:
        assert tasks.request_cancel(session, task_id)
        assert tasks.finish(session, task, {"answer": 1})
        assert not tasks.cancel_held(session, task)


def test_tasks_are_cancelled_over_http(
    client: TestClient, database: Database, queue: FakeQueue, spec: dict[str, Any]
) -> None:
    asked = client.post("/v1/jobs/validate?wait_s=0", json=spec).json()
    where = f"/v1/tasks/{asked['id']}"
    task = claimed(database)
    reply = client.post(f"{where}/cancel")
    assert (reply.status_code, reply.json()["state"], reply.json()["requested"]) == (202, "running", "cancel")
    assert asked["id"] in queue.nudges
    assert "is being cancelled" in error_of(client.post(f"{where}/cancel"), 409, "state_conflict")["message"]
    fresh = client.post("/v1/jobs/validate?wait_s=0", json=spec).json()
    assert fresh["id"] != asked["id"], "nothing joins a task that is being cancelled"
    with database.transaction() as session:
        assert tasks.cancel_held(session, task)
    assert client.get(where).json()["state"] == "cancelled"
    error_of(client.post(f"{where}/cancel"), 409, "state_conflict")
    reply = client.post(f"/v1/tasks/{fresh['id']}/cancel")
    assert (reply.status_code, reply.json()["state"], reply.json()["error"]["code"]) == (202, "cancelled", "cancelled")
    error_of(client.post(f"/v1/tasks/{'0' * 32}/cancel"), 404, "not_found")


def test_a_task_does_not_return_to_the_queue_while_it_is_being_cancelled(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker leaves between the two statements of a cancel."""
    task_id = ask(database, "default")
    task = claimed(database)
    request_cancel = tasks.request_cancel

    def late(session: Session, task_id: str) -> bool:
        with suppress(DatabaseError), database.within(0.1), database.transaction() as other:
            tasks.release(other, task)
        return request_cancel(session, task_id)

    monkeypatch.setattr(tasks, "request_cancel", late)
    found = JobService(database, FakeQueue(), settings).cancel_task(task_id)
    assert (found.state, found.requested) == (TaskState.RUNNING, "cancel")
    with database.transaction() as session:
        assert tasks.release(session, task)
    assert claim(database) is None, "it is cancelled"


class WatchedQueue(FakeQueue):
    """Notes whether its broker is asked by the thread that serves every request."""

    def __init__(self) -> None:
        super().__init__()
        self.holds_up: list[bool] = []

    def is_up(self) -> bool:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self.holds_up.append(False)
        else:
            self.holds_up.append(True)
        return super().is_up()


def test_a_broker_that_stands_still_holds_up_one_request_and_only_of_what_waits(
    settings: Settings, spec: dict[str, Any]
) -> None:
    queue = WatchedQueue()
    with TestClient(create_app(settings, queue), BASE_URL) as client:
        database: Database = client.app.state.service.database  # type: ignore[attr-defined]
        job_id = trained(database, client, spec)
        with database.transaction() as session:
            artifacts.add(session, "default", job_id, [ArtifactFile(ArtifactKind.MODEL, "model/m", 1, "0" * 64)])
        rows = (DATA / "pairs_train.jsonl").read_bytes()[:20_000].rpartition(b"\n")[0]
        dataset = client.post("/v1/datasets", content=rows).raise_for_status().json()["id"]
        queue.holds_up.clear()
        path, wanted = f"/v1/jobs/{job_id}", {"model_name": spec["model_name"]}
        replies = [
            client.post("/v1/jobs/validate?wait_s=0", json=spec),
            client.post(f"/v1/datasets/{dataset}/preview?wait_s=0", json=wanted),
            client.get(f"/v1/datasets/{dataset}/report?wait_s=0"),
            client.post(f"{path}/merge"),
            client.post(f"{path}/push", json={"name": "m"}),
            client.post(f"{path}/compare?wait_s=0", json={"prompt": "س"}),
        ]
        assert [(reply.status_code, reply.json()["waiting_for"]) for reply in replies] == [(202, "worker")] * 6
        assert queue.holds_up == [False] * 6
        answer(database)
        assert client.post("/v1/jobs/validate?wait_s=0", json=spec).json()["waiting_for"] == "worker"
        task_id = replies[0].json()["id"]
        queue.holds_up.clear()
        assert client.get(f"/v1/tasks/{task_id}").json()["state"] == "succeeded"
        assert queue.holds_up == []


def test_equal_requests_join_a_task_that_is_not_done(client: TestClient, database: Database, spec: dict[str, Any]) -> None:
    def asked(**changes: Any) -> str:
        return client.post("/v1/jobs/validate?wait_s=0", json={**spec, **changes}).json()["id"]

    first = asked()
    assert asked() == first != asked(beta=0.3)
    assert answer(database) == first
    assert asked() != first, "it is done"
    job_id = trained(database, client, spec)

    def compared(**fields: Any) -> str:
        return client.post(f"/v1/jobs/{job_id}/compare?wait_s=0", json={"prompt": "س", **fields}).json()["id"]

    assert compared() == compared() != compared(max_length=9)
    assert compared(temperature=1.0, seed=4) == compared(temperature=1.0, seed=4)
    assert compared(temperature=1.0) != compared(temperature=1.0), "each is sampled anew"


def test_a_dry_run_of_a_file_that_has_changed_is_another(
    client: TestClient, settings: Settings, spec: dict[str, Any]
) -> None:
    path = settings.data_dir / "own.jsonl"
    path.write_bytes((DATA / "pairs_train.jsonl").read_bytes())
    own = {**spec, "dataset_path": "own.jsonl"}
    first = client.post("/v1/jobs/validate?wait_s=0", json=own).json()["id"]
    path.write_bytes((DATA / "pairs_held_out.jsonl").read_bytes())
    assert client.post("/v1/jobs/validate?wait_s=0", json=own).json()["id"] != first


def test_a_thousand_merges_of_a_job_are_one(client: TestClient, database: Database, spec: dict[str, Any]) -> None:
    job_id = trained(database, client, spec)
    found: list[str] = []

    def merge() -> None:
        found.extend(client.post(f"/v1/jobs/{job_id}/merge").json()["id"] for _ in range(5))

    threads = [threading.Thread(target=merge) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 20
    with database.transaction() as session:
        task = tasks.claim_next(session, [TaskKind.MERGE], 60)
        assert task
        artifacts.add(session, "default", job_id, [ArtifactFile(ArtifactKind.MERGED, "merged-1/m", 1, "0" * 64)])
        tasks.finish(session, task, {"files": 1})
    again = client.post(f"/v1/jobs/{job_id}/merge")
    assert (again.status_code, again.json()["id"], again.json()["result"]) == (200, task.id, {"files": 1})
    assert client.delete(f"/v1/jobs/{job_id}/artifacts?kind=merged").status_code == 200
    anew = client.post(f"/v1/jobs/{job_id}/merge")
    assert anew.status_code == 202
    assert anew.json()["id"] != task.id, "its files are gone"


def test_a_tenant_has_so_many_open_tasks_and_no_more(settings: Settings, queue: FakeQueue, spec: dict[str, Any]) -> None:
    small = settings.model_copy(update={"quota_open_tasks": 2})
    with TestClient(create_app(small, queue), BASE_URL) as client:

        def asked(beta: float) -> Any:
            return client.post("/v1/jobs/validate?wait_s=0", json={**spec, "beta": beta})

        first = asked(0.1).json()["id"]
        assert asked(0.2).status_code == 202
        refused = asked(0.3)
        error = error_of(refused, 429, "rate_limited")
        assert (error["message_code"], error["params"]["n"]) == ("quota_tasks", 2)
        assert int(refused.headers["retry-after"]) > 0
        assert asked(0.1).json()["id"] == first, "what joins another takes no place"
        assert client.post(f"/v1/tasks/{first}/cancel").status_code == 202
        assert asked(0.3).status_code == 202
