"""Replies in the language that a request accepts: errors, warnings, events, attempts, on the API of this process."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.database import Database
from jobs.repository import jobs, tasks
from jobs.settings import Settings
from jobs.states import Cause, TaskKind
from tests.api import BASE_URL, client, database, error_of, queue, run
from tests.conftest import DATA
from tests.fakes import FakeQueue
from trainer_core.errors import CODES, SpecInvalid
from trainer_core.wording import said, say, worded

__all__ = ["client", "database", "queue"]
ARABIC = {"Accept-Language": "ar-SA, en;q=0.5"}


def is_arabic(text: str) -> bool:
    return any("\u0600" <= letter <= "\u06ff" for letter in text)


def events_of(client: TestClient, job_id: str, headers: dict[str, str]) -> Iterator[dict[str, Any]]:
    text = client.get(f"/v1/jobs/{job_id}/events", headers=headers).text
    yield from (json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: "))


def test_an_error_is_in_the_language_that_is_accepted(client: TestClient) -> None:
    sent = {"method": "kto", "typo": 1, "beta": "x"}
    english, arabic = client.post("/v1/jobs", json=sent), client.post("/v1/jobs", json=sent, headers=ARABIC)
    error = error_of(english, 422, "spec_invalid")
    other = arabic.json()["error"]
    assert arabic.status_code == 422
    assert [reply.headers["Content-Language"] for reply in (english, arabic)] == ["en", "ar"]
    assert all("Accept-Language" in reply.headers["Vary"] for reply in (english, arabic))
    assert len(error["details"]) == 4
    texts = [other["message"], other["hint"], *(detail["reason"] for detail in other["details"])]
    assert [text for text in texts if not is_arabic(text)] == []
    for found in (error, other):
        for name in ("message", "hint"):
            found.pop(name)
        for detail in found["details"]:
            detail.pop("reason")
    assert error == other, "codes and values stay"


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/jobs/abc", "/v1/jobs?limit=x", "/v1/jobs?cursor=x", "/nowhere"])
def test_what_no_route_answers_is_worded(client: TestClient, path: str) -> None:
    reply = client.get(path, headers=ARABIC)
    assert is_arabic(reply.json()["error"]["message"]), reply.text
    assert reply.headers["Content-Language"] == "ar"


def test_the_gate_and_the_limits_are_worded(client: TestClient) -> None:
    for reply in (
        client.get("/v1/jobs", headers={**ARABIC, "Host": "evil.example"}),
        client.post("/v1/jobs", headers={**ARABIC, "Origin": "http://evil.example"}),
        client.post("/v1/jobs", content=b"x" * 2**22, headers=ARABIC),
        client.request("PATCH", "/v1/jobs", headers=ARABIC),
        client.post("/v1/jobs", content=b"{", headers={**ARABIC, "Content-Type": "application/json"}),
    ):
        assert reply.status_code >= 400
        assert is_arabic(reply.json()["error"]["message"]), reply.text
        assert reply.headers["Content-Language"] == "ar"


def test_an_unexpected_error_is_worded(settings: Settings, queue: FakeQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    app: FastAPI = create_app(settings, queue)

    def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("jobs.tenancy.TenantService.own_job", fail)
    with TestClient(app, BASE_URL, raise_server_exceptions=False) as client:
        reply = client.get(f"/v1/jobs/{'0' * 32}", headers=ARABIC)
    assert (reply.status_code, reply.headers["Content-Language"]) == (500, "ar")
    assert reply.json()["error"]["message"] == worded("unexpected", {}, "ar")


def test_what_is_stored_is_worded_when_it_is_sent(client: TestClient, database: Database, spec: dict[str, Any]) -> None:
    fence = run(database, client, spec)
    path = f"/v1/jobs/{fence.job_id}"
    missing = say("value.missing")
    problem = SpecInvalid.at("prompt", missing)
    with database.transaction() as session:
        jobs.add_warning(session, fence, {"code": "checkpoint_gone", **said(say("checkpoint_gone"))})
        jobs.add_warning(session, fence, {"code": "old", "message": "an old one"})
        jobs.finish(session, fence, Cause.FAIL, {"error": problem.as_dict()}, {"error": said(missing)}, reason=missing)
    english, arabic = client.get(path).json(), client.get(path, headers=ARABIC).json()
    assert [each["message"] for each in english["warnings"]] == [say("checkpoint_gone"), "an old one"]
    assert [each["message"] for each in arabic["warnings"]] == [worded("checkpoint_gone", {}, "ar"), "an old one"]
    assert english["error"]["message"] == "is required"
    assert arabic["error"]["message"] == arabic["error"]["details"][0]["reason"] == worded("value.missing", {}, "ar")
    assert arabic["error"]["hint"] != CODES["spec_invalid"].hint
    (attempt,) = client.get(f"{path}/attempts", headers=ARABIC).json()["attempts"]
    assert (attempt["reason"], attempt["reason_code"]) == (worded("value.missing", {}, "ar"), "value.missing")
    told = list(events_of(client, fence.job_id, ARABIC))
    assert [each["message"] for each in told if not is_arabic(each["message"])] == ["an old one"]
    codes = {each.get("message_code") for each in events_of(client, fence.job_id, {})}
    assert codes >= {"event.queued", "event.claimed", "event.failed", "checkpoint_gone"}
    assert is_arabic(client.get("/v1/jobs", headers=ARABIC).json()["jobs"][0]["error"]["message"])


def test_a_task_is_worded(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        tasks.insert(session, TaskKind.VALIDATE, "default", {})
        tasks.insert(session, TaskKind.VALIDATE, "default", {})
        done, failed = (tasks.claim_next(session, [TaskKind.VALIDATE], 60) for _ in range(2))
        assert done
        assert failed
        tasks.finish(session, done, {"warnings": [{"code": "x", **said(say("checkpoint_gone"))}], "plan": {}})
        tasks.finish(session, failed, None, SpecInvalid(say("value.missing")).as_dict())
        ids = done.id, failed.id
    found, other = (client.get(f"/v1/tasks/{each}", headers=ARABIC).json() for each in ids)
    assert found["result"] == {
        "plan": {},
        "warnings": [
            {"code": "x", "message": worded("checkpoint_gone", {}, "ar"), "message_code": "checkpoint_gone", "params": {}}
        ],
    }
    assert other["error"]["message"] == worded("value.missing", {}, "ar")


def test_files_and_assets_have_no_language(client: TestClient) -> None:
    rows = (DATA / "pairs_train.jsonl").read_bytes()
    assert client.post("/v1/datasets", content=rows, headers=ARABIC).headers["Content-Language"] == "ar"
    for path in ("/assets/wording/ar.json", "/", "/metrics", "/openapi.json"):
        reply = client.get(path, headers=ARABIC)
        assert reply.status_code == 200
        assert "Content-Language" not in reply.headers, path


def test_every_sentence_is_served_to_the_dashboard(client: TestClient) -> None:
    english, arabic = (client.get(f"/assets/wording/{language}.json") for language in ("en", "ar"))
    assert english.json().keys() == arabic.json().keys()
    assert english.json()["hint.oom_gpu"] == CODES["oom_gpu"].hint
    tag = {"If-None-Match": arabic.headers["ETag"]}
    assert client.get("/assets/wording/ar.json", headers=tag).status_code == 304
    assert "default-src 'none'" in arabic.headers["Content-Security-Policy"]
    assert client.get("/assets/wording/fr.json").status_code == 404
