"""API keys and tenants: every route closed without a key, and each tenant alone in its service."""

import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import text

from api.app import create_app
from api.gate import OPEN_PATHS, OPEN_PREFIXES, needed_scope
from api.limits import StreamLimit
from jobs.access import Scope
from jobs.artifacts import ArtifactFile, ArtifactKind
from jobs.database import Database
from jobs.errors import RateLimited
from jobs.places import run_dir
from jobs.repository import artifacts, jobs
from jobs.settings import Settings
from jobs.states import Cause
from tests.api import BASE_URL, error_of, queue
from tests.conftest import DATA
from tests.fakes import FakeQueue

__all__ = ["queue"]

ADMIN_KEY = "an-admin-key-of-more-than-32-letters"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
ANY_ID = "0" * 32
# What a route needs before it looks for what its path names. A new route that needs a body must be added.
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/jobs/{job_id}/compare"): {"prompt": "سؤال"},
    ("POST", "/v1/jobs/{job_id}/push"): {"name": "model"},
    ("POST", "/v1/datasets/{dataset_id}/preview"): {"model_name": "tafdil/tiny-arabic-qwen-2"},
}


@pytest.fixture
def app(settings: Settings, queue: FakeQueue) -> FastAPI:
    # No worker answers here.
    return create_app(settings.model_copy(update={"admin_key": SecretStr(ADMIN_KEY), "max_wait_s": 0.01}), queue)


@pytest.fixture
def admin(app: FastAPI) -> Generator[TestClient]:
    with TestClient(app, BASE_URL, raise_server_exceptions=False, headers=bearer(ADMIN_KEY)) as found:
        yield found


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def client_of(admin: TestClient, **wanted: Any) -> TestClient:
    """A client with a new key."""
    reply = admin.post("/v1/keys", json=wanted)
    assert reply.status_code == 201, reply.text
    return TestClient(admin.app, BASE_URL, raise_server_exceptions=False, headers=bearer(reply.json()["key"]))


def database_of(admin: TestClient) -> Database:
    return admin.app.state.service.database  # type: ignore[attr-defined]


def every_route(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of everything that the application answers, whatever made it."""
    found = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    yield from found
    for route in app.routes:
        router, path = getattr(route, "original_router", None), getattr(route, "path", None)
        if router is not None:
            # Whole routers: each of theirs must be in the description, which has the full paths.
            inner = {route.path for route in router.routes}
            assert all(any(path.endswith(each) for _, path in found) for each in inner), inner
        else:
            assert path, f"a route that this walk does not understand: {route}"
            yield from ((method, path) for method in getattr(route, "methods", None) or METHODS)


@pytest.mark.parametrize("database_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)], indirect=True)
def test_every_route_is_closed_without_a_key(app: FastAPI, admin: TestClient) -> None:
    anonymous = TestClient(app, BASE_URL, raise_server_exceptions=False)
    walked = set()
    paths = {path for _, path in every_route(app)} | {"/nothing/here", "/v1", "/metrics", "/docs", "/openapi.json"}
    for path in paths:
        concrete = path.replace("{path:path}", "x.js").replace("{language}", "ar")
        for name in ("job_id", "dataset_id", "comparison_id", "task_id", "artifact_id", "key_id"):
            concrete = concrete.replace(f"{{{name}}}", ANY_ID)
        assert "{" not in concrete, f"say in this test what {path} takes"
        for method in METHODS:
            reply = anonymous.request(method, concrete)
            if path in OPEN_PATHS or path.startswith(OPEN_PREFIXES):
                assert reply.status_code != 401 or path == "/v1/session", (method, path)
                continue
            walked.add((method, path))
            assert reply.status_code == 401, (method, path, reply.status_code)
            assert reply.headers["www-authenticate"] == "Bearer"
            for wrong in (
                "Bearer a\x7fb",
                "Bearer ",
                "Bearer tafdil_wrong",
                "Basic eDp5",
                f"bearer x{ADMIN_KEY}",
                ADMIN_KEY,
            ):
                assert anonymous.request(method, concrete, headers={"Authorization": wrong}).status_code == 401
    assert {("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/docs"), ("GET", "/metrics")} <= walked
    error_of(anonymous.get("/v1/jobs"), 401, "unauthorized")
    assert anonymous.get("/healthz").status_code == anonymous.get("/readyz").status_code == 200


def test_a_tenant_sees_nothing_of_another(app: FastAPI, admin: TestClient, spec: dict[str, Any]) -> None:
    mine, theirs = client_of(admin, tenant="mine"), client_of(admin, tenant="theirs")
    rows = (DATA / "pairs_train.jsonl").read_bytes() + b'{"prompt": 1}\n'
    dataset = theirs.post("/v1/datasets", content=rows, params={"on_invalid": "skip"}).json()
    job = theirs.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "same"}).json()
    database = database_of(admin)
    with database.transaction() as session:
        claimed = jobs.claim_next(session, "worker", 60)
        assert claimed
        jobs.finish(session, jobs.Fence(claimed.id, 1, str(claimed.lease_token)), Cause.FINISH, {"artifact_path": "x"})
        artifacts.add(session, "theirs", job["id"], [ArtifactFile(ArtifactKind.LOG, "log.txt", 1, "0" * 64)])
    log = run_dir(admin.app.state.service.settings, job["id"]) / "log.txt"  # type: ignore[attr-defined]
    log.parent.mkdir(parents=True)
    log.write_text("x")
    artifact = theirs.get(f"/v1/jobs/{job['id']}/artifacts").json()["artifacts"][0]["id"]
    asked = theirs.post(f"/v1/jobs/{job['id']}/compare", json={"prompt": "س"}, params={"wait_s": 0}).json()
    before = theirs.get(f"/v1/jobs/{job['id']}").json()
    held_out = theirs.post(f"/v1/jobs/{job['id']}/compare/held_out", json={}, params={"wait_s": 0}).json()
    ids = {"job_id": job["id"], "dataset_id": dataset["id"], "comparison_id": asked["id"]}
    ids |= {"task_id": asked["id"], "artifact_id": artifact}
    walked = 0
    for method, path in every_route(app):
        if not path.startswith("/v1/") or "{" not in path or path.startswith("/v1/keys"):
            continue
        concrete = path.format(**ids | ({"comparison_id": held_out["id"]} if "held_out" in path else {}))
        if method == "GET" and not path.endswith("/events"):  # which would not end
            own = theirs.get(concrete)
            assert own.status_code < 400, (path, own.text)
        error_of(mine.request(method, concrete, json=BODIES.get((method, path))), 404, "not_found")
        walked += 1
    assert walked > 12
    for path in ("/v1/jobs", "/v1/datasets"):
        name = path.rpartition("/")[2]
        assert mine.get(path).json()[name] == []
        assert len(theirs.get(path).json()[name]) == 1
        error_of(mine.get(path, params={"cursor": ids[f"{name[:-1]}_id"]}), 404, "not_found")
    assert mine.get("/v1/methods").json() == theirs.get("/v1/methods").json()
    by_id = {**{k: v for k, v in spec.items() if k != "dataset_path"}, "dataset_id": dataset["id"]}
    error_of(mine.post("/v1/jobs", json=by_id), 404, "not_found")
    by_path = {**spec, "dataset_path": f"datasets/{dataset['id']}.rows"}
    error_of(mine.post("/v1/jobs", json=by_path), 422, "data_invalid")
    again = mine.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "same"}).json()
    assert again["id"] != job["id"], "an idempotency key is the tenant's own"
    assert theirs.get(f"/v1/jobs/{job['id']}").json() == before


def test_a_key_is_shown_once_and_stored_nowhere(admin: TestClient, spec: dict[str, Any], caplog: Any) -> None:
    made = admin.post("/v1/keys", json={"tenant": "a", "name": "لوحة", "scopes": ["read", "write"]})
    assert made.headers["cache-control"] == "no-store"
    key = made.json()["key"]
    assert len(key) > 43
    assert key.startswith(made.json()["prefix"])
    client = TestClient(admin.app, BASE_URL, headers=bearer(key))
    assert client.post("/v1/jobs", json=spec).status_code == 202
    listed = admin.get("/v1/keys").json()["keys"]
    assert [(k["name"], k["tenant"], k["scopes"]) for k in listed] == [("لوحة", "a", ["read", "write"])]
    assert listed[0]["last_used_at"]
    assert key not in admin.get("/v1/keys").text
    secret = key[len(made.json()["prefix"]) :]
    with database_of(admin).reading() as session:
        tables = ("api_keys", "jobs", "job_events", "datasets", "tasks")
        rows = [str(row) for table in tables for row in session.execute(text(f"SELECT * FROM {table}"))]  # noqa: S608
    assert rows
    assert not [row for row in rows if secret in row or ADMIN_KEY in row]
    assert secret not in caplog.text
    assert ADMIN_KEY not in caplog.text


def test_a_revoked_or_expired_key_is_refused_at_once(admin: TestClient) -> None:
    client = client_of(admin, tenant="a")
    assert client.get("/v1/jobs").status_code == 200
    key_id = admin.get("/v1/keys").json()["keys"][0]["id"]
    assert admin.delete(f"/v1/keys/{key_id}").json()["revoked_at"]
    error_of(client.get("/v1/jobs"), 401, "unauthorized")
    assert admin.delete(f"/v1/keys/{key_id}").status_code == 200, "revoking again changes nothing"
    error_of(admin.delete(f"/v1/keys/{ANY_ID}"), 404, "not_found")
    short = client_of(admin, tenant="a", expires_in_days=0.2 / 86_400)
    time.sleep(0.3)
    error_of(short.get("/v1/jobs"), 401, "unauthorized")


def test_scopes_say_what_a_key_may_do(admin: TestClient, spec: dict[str, Any]) -> None:
    reader, writer = client_of(admin, scopes=["read"]), client_of(admin, scopes=["write"])
    counter, keeper = client_of(admin, scopes=["metrics"]), client_of(admin, scopes=["admin"])
    assert reader.get("/v1/jobs").status_code == 200
    message = error_of(reader.post("/v1/jobs", json=spec), 403, "forbidden")["message"]
    assert message == "this key does not have the write scope; it has read"
    assert writer.post("/v1/jobs", json=spec).status_code == 202
    assert writer.get("/v1/jobs").status_code == 200
    for client in (reader, writer, counter):
        error_of(client.get("/v1/keys"), 403, "forbidden")
        error_of(client.post("/v1/keys", json={"scopes": ["admin"]}), 403, "forbidden")
    for client in (reader, writer):
        error_of(client.get("/metrics"), 403, "forbidden")
    error_of(counter.get("/v1/jobs"), 403, "forbidden")
    assert keeper.get("/v1/keys").status_code == 200
    error_of(keeper.get("/v1/jobs"), 403, "forbidden")
    for path in ("/v1/keys", "/v1/keys/x", "/metrics", "/v1/jobs", "/v1/keysandmore"):
        expected = {"/metrics": Scope.METRICS, "/v1/keys": Scope.ADMIN, "/v1/keys/x": Scope.ADMIN}
        assert needed_scope("GET", path) is expected.get(path, Scope.READ)


def test_a_browser_signs_in_with_a_cookie(app: FastAPI, admin: TestClient, spec: dict[str, Any]) -> None:
    key = admin.post("/v1/keys", json={"tenant": "a"}).json()["key"]
    browser = TestClient(app, BASE_URL, raise_server_exceptions=False)
    assert browser.get("/v1/session").json() == {
        "keys_are_on": True,
        "tenant": None,
        "scopes": [],
        "max_priority": None,
    }
    error_of(browser.post("/v1/session", json={"key": "tafdil_no"}), 401, "unauthorized")
    signed = browser.post("/v1/session", json={"key": key})
    cookie = signed.headers["set-cookie"].lower()
    assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/"))
    assert signed.json()["tenant"] == browser.get("/v1/session").json()["tenant"] == "a"
    assert browser.post("/v1/jobs", json=spec).status_code == 202
    foreign = {"Origin": "https://elsewhere.example"}
    error_of(browser.post("/v1/jobs", json=spec, headers=foreign), 403, "forbidden")
    assert browser.delete("/v1/session").status_code == 204
    error_of(browser.get("/v1/jobs"), 401, "unauthorized")


@pytest.mark.parametrize("method", METHODS)
def test_another_name_or_page_reaches_nothing(app: FastAPI, admin: TestClient, method: str) -> None:
    for host in ("attacker.example", "127.0.0.1.attacker.example", "localhost:8000:9", "", "[::1", "127.0.0.1@evil"):
        reply = admin.request(method, "/v1/jobs", headers={"Host": host})
        assert reply.status_code == 403, host
    for host in ("127.0.0.1", "localhost:1234", "LOCALHOST", "[::1]:80"):
        assert admin.request(method, "/healthz", headers={"Host": host}).status_code != 403, host
    unsafe = method not in ("GET", "HEAD", "OPTIONS")
    for origin in (
        "http://[",
        "https://elsewhere.example",
        "null",
        "http://127.0.0.1:9999",
        "http://127.0.0.1:8000.evil.example",
    ):
        reply = admin.request(method, "/v1/jobs", headers={"Origin": origin})
        assert (reply.status_code == 403) == unsafe, origin
        assert not [name for name in reply.headers if name.startswith("access-control-")]
    own = admin.request(method, "/v1/jobs", headers={"Origin": BASE_URL})
    assert own.status_code != 403


def test_requests_are_limited_by_key(settings: Settings, queue: FakeQueue) -> None:
    few = settings.model_copy(update={"admin_key": SecretStr(ADMIN_KEY), "requests_per_minute": 5})
    with TestClient(create_app(few, queue), BASE_URL, headers=bearer(ADMIN_KEY)) as admin:
        first, second = client_of(admin, tenant="a"), client_of(admin, tenant="b")
        assert [first.get("/v1/jobs").status_code for _ in range(7)] == [200] * 5 + [429] * 2
        limited = first.get("/v1/jobs")
        error_of(limited, 429, "rate_limited")
        assert int(limited.headers["retry-after"]) >= 1
        assert second.get("/v1/jobs").status_code == 200
        assert first.get("/healthz").status_code == 200


def test_streams_are_limited_by_key() -> None:
    limit = StreamLimit(2)
    with limit.held("a"):
        with limit.held("a"), pytest.raises(RateLimited, match="2 event streams"), limit.held("a"):
            pass
        with limit.held("b"), limit.held("a"):
            pass


def test_quotas_are_a_tenants(settings: Settings, queue: FakeQueue, spec: dict[str, Any]) -> None:
    small = settings.model_copy(
        update={
            "admin_key": SecretStr(ADMIN_KEY),
            "quota_open_jobs": 2,
            "quota_dataset_bytes": 150,
            "quota_training_hours": 1.0,
        }
    )
    row = '{"prompt": "س", "chosen": "نعم", "rejected": "لا"}\n'.encode()
    with TestClient(create_app(small, queue), BASE_URL, headers=bearer(ADMIN_KEY)) as admin:
        first, second = client_of(admin, tenant="a"), client_of(admin, tenant="b")
        ids = [first.post("/v1/jobs", json=spec).json()["id"] for _ in range(2)]
        reply = first.post("/v1/jobs", json=spec)
        refused = error_of(reply, 429, "rate_limited")
        assert (refused["message_code"], refused["params"]["n"]) == ("quota_jobs", 2)
        assert reply.headers["retry-after"] == "60"
        error_of(first.post(f"/v1/jobs/{ids[0]}/clone", json={}), 429, "rate_limited")
        assert second.post("/v1/jobs", json=spec).status_code == 202
        first.post(f"/v1/jobs/{ids[0]}/cancel")
        third = first.post("/v1/jobs", json=spec).json()["id"]
        assert first.post("/v1/datasets", content=row * 2).status_code == 201
        assert "150 bytes" in error_of(first.post("/v1/datasets", content=row), 413, "too_large")["message"]
        assert second.post("/v1/datasets", content=row).status_code == 201
        with database_of(admin).transaction() as session:
            held = [jobs.claim_next(session, "worker", 60) for _ in range(2)]
            assert {job.tenant for job in held if job} == {"a", "b"}
            session.execute(text("UPDATE attempts SET started_at = started_at - 3700"))
        first.post(f"/v1/jobs/{third}/cancel")
        used_up = first.post("/v1/jobs", json=spec)
        assert "1 hours" in error_of(used_up, 429, "rate_limited")["message"]
        with database_of(admin).transaction() as session:
            (job,) = [job for job in held if job and job.tenant == "a"]
            jobs.finish(session, jobs.Fence(job.id, job.attempt, str(job.lease_token)), Cause.FINISH)
        assert first.delete(f"/v1/jobs/{job.id}").status_code == 200
        error_of(first.post("/v1/jobs", json=spec), 429, "rate_limited")


def test_requests_at_once_pass_no_quota(settings: Settings, queue: FakeQueue, spec: dict[str, Any]) -> None:
    row = '{"prompt": "س", "chosen": "نعم", "rejected": "لا"}\n'.encode()
    small = settings.model_copy(update={"quota_open_jobs": 3, "quota_dataset_bytes": 3 * len(row)})
    with TestClient(create_app(small, queue), BASE_URL) as client, ThreadPoolExecutor(12) as pool:
        submits = list(pool.map(lambda _: client.post("/v1/jobs", json=spec).status_code, range(12)))
        uploads = list(pool.map(lambda _: client.post("/v1/datasets", content=row).status_code, range(12)))
    assert sorted(submits) == [202] * 3 + [429] * 9
    assert sorted(uploads) == [201] * 3 + [413] * 9


def test_tenants_take_turns_however_many_jobs_one_submits(admin: TestClient, spec: dict[str, Any]) -> None:
    many, few = client_of(admin, tenant="many"), client_of(admin, tenant="few")
    hasty = client_of(admin, tenant="many", max_priority=5)
    database = database_of(admin)

    def claim() -> str:
        with database.transaction() as session:
            job = jobs.claim_next(session, "worker", 60)
            assert job
            jobs.finish(session, jobs.Fence(job.id, job.attempt, str(job.lease_token)), Cause.FINISH)
            return job.id

    first = [many.post("/v1/jobs", json=spec).json()["id"] for _ in range(30)]
    assert [claim() for _ in range(3)] == first[:3]
    second = [few.post("/v1/jobs", json=spec).json() for _ in range(3)]
    assert second[0]["queue_position"] == 2, "behind the one whose turn it is, not behind thirty"
    order = [claim() for _ in range(6)]
    assert order == [first[3], second[0]["id"], first[4], second[1]["id"], first[5], second[2]["id"]]
    # Who was away comes back to where the queue is, neither before it nor behind it.
    [claim() for _ in range(10)]
    assert few.post("/v1/jobs", json=spec).json()["queue_position"] == 2
    message = error_of(many.post("/v1/jobs", json={**spec, "priority": 1}), 403, "forbidden")["message"]
    assert "at most 0" in message
    urgent = hasty.post("/v1/jobs", json={**spec, "priority": 5}).json()
    assert urgent["queue_position"] == 1
    assert claim() == urgent["id"]
    error_of(many.post(f"/v1/jobs/{urgent['id']}/rerun"), 403, "forbidden")


def test_where_the_queue_stands_is_not_told_by_what_stands_still(admin: TestClient, spec: dict[str, Any]) -> None:
    many, few = client_of(admin, tenant="many"), client_of(admin, tenant="few")
    # No worker serves this class, so that this job keeps its early turn.
    many.post("/v1/jobs", json={**spec, "gpu_class": "none"})
    waiting = [many.post("/v1/jobs", json=spec).json()["id"] for _ in range(9)]
    database = database_of(admin)
    for _ in range(5):
        with database.transaction() as session:
            claimed = jobs.claim_next(session, "worker", 60)
            assert claimed
            jobs.finish(session, jobs.Fence(claimed.id, 1, str(claimed.lease_token)), Cause.FINISH)
    places = [few.post("/v1/jobs", json=spec).json()["queue_position"] for _ in range(3)]
    assert places == [2, 4, 6], "in turn with the four that wait, behind nobody and before nobody"
    for job_id in waiting[5:]:
        many.post(f"/v1/jobs/{job_id}/cancel")
    # What was cancelled before it began took no turn.
    assert many.post("/v1/jobs", json=spec).json()["queue_position"] <= 2


def test_a_clone_has_the_spec_with_changes(admin: TestClient, spec: dict[str, Any]) -> None:
    job = admin.post("/v1/jobs", json={**spec, "name": "أول"}).json()
    path = f"/v1/jobs/{job['id']}/clone"
    clone = admin.post(path, json={"learning_rate": 5e-4, "name": None}, headers={"Idempotency-Key": "c"}).json()
    assert (clone["rerun_of"], clone["name"], clone["spec"]["learning_rate"]) == (job["id"], None, 5e-4)
    same = {name: value for name, value in clone["spec"].items() if name not in ("learning_rate", "name")}
    assert same == {name: value for name, value in job["spec"].items() if name not in ("learning_rate", "name")}
    repeated = admin.post(path, json={"learning_rate": 5e-4, "name": None}, headers={"Idempotency-Key": "c"})
    assert repeated.json()["id"] == clone["id"]
    error_of(admin.post(path, json={}, headers={"Idempotency-Key": "c"}), 409, "idempotency_conflict")
    other = admin.post("/v1/datasets", content=(DATA / "pairs_train.jsonl").read_bytes()).json()
    moved = admin.post(path, json={"dataset_id": other["id"]}).json()
    assert (moved["spec"]["dataset_id"], moved["spec"]["dataset_path"]) == (other["id"], None)
    error = error_of(admin.post(path, json={"learning_rte": 1}), 422, "spec_invalid")
    (detail,) = error["details"]
    assert (detail["field"], detail["code"], detail["params"]) == ("learning_rte", "value.not_a_field_of", {"method": "IPO"})
    error_of(admin.post(path, json={"method": "ppo"}), 422, "spec_invalid")
    assert admin.post(path).json()["spec"] == job["spec"]
    events = admin.get(f"/v1/jobs/{clone['id']}/metadata").json()
    assert events["sent_spec"]["learning_rate"] == 5e-4


def test_without_keys_this_machine_alone_is_served(settings: Settings, queue: FakeQueue) -> None:
    app = create_app(settings, queue)
    with TestClient(app, BASE_URL) as client:
        assert client.get("/v1/session").json()["keys_are_on"] is False
        assert client.get("/v1/jobs").status_code == 200
        named = client.get("/v1/jobs", headers={"Host": "trainer.example:8000"})
        assert "TAFDIL_ALLOWED_HOSTS" in error_of(named, 403, "forbidden")["message"]
    assert Settings.model_validate({"allowed_hosts": "a.example, localhost"}).allowed_hosts == ["a.example", "localhost"]
    with pytest.raises(ValueError, match="at least 32"):
        Settings(admin_key=SecretStr("short"))
