"""The service against its own description: requests made from it, right and wrong, are answered as it says, never 5xx."""

import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr
from schemathesis.engine import events, from_schema
from schemathesis.python.asgi import HOST, shutdown_lifespans

from api.app import create_app
from api.gate import is_open
from jobs.access import Access, Scope
from jobs.database import Database
from jobs.settings import Settings
from tests.api import BASE_URL, error_of
from tests.fakes import FakeQueue
from tests.seeds import Seeds, sow
from trainer_core.wording import LANGUAGES, worded

EXAMPLES = int(os.environ.get("TAFDIL_TEST_EXAMPLES", "12"))
ADMIN_KEY = "an-admin-key-of-more-than-32-letters"
PLACES = (str(Path(__file__).resolve().parents[2]), tempfile.gettempdir(), sys.prefix)
FIELDS = {"code", "message", "hint", "retryable", "user_fault", "details"}
# Both take a spec, whose schema thousands of requests cover.
SUBMIT, DRY_RUN = "POST /v1/jobs", "POST /v1/jobs/validate"
# What these refuse with 422 no schema tells: a file or model that is not there, fields that exclude each other, broken rows.
BEYOND_SCHEMAS = (
    ("POST", "/v1/jobs"),
    ("POST", "/v1/jobs/validate"),
    ("POST", "/v1/jobs/{job_id}/clone"),
    ("POST", "/v1/datasets"),
    ("POST", "/v1/datasets/check"),
    ("GET", "/v1/datasets/{dataset_id}/broken"),
    ("POST", "/v1/datasets/{dataset_id}/preview"),
    ("GET", "/v1/datasets/{dataset_id}/report"),
)


@schemathesis.check
def errors_have_one_shape(ctx: Any, response: Any, case: Any) -> None:
    """What an error says is for clients: the one shape, and nothing of the machine."""
    if response.status_code < 400 or response.request.method == "HEAD" or case.operation.path == "/readyz":
        return
    error = response.json()["error"]
    assert set(error) - {"question", "message_code", "params"} == FIELDS, error
    assert error["hint"] in [worded(f"hint.{error['code']}", {}, language) for language in LANGUAGES]
    text = response.content.decode()
    assert "Traceback" not in text
    assert not [place for place in PLACES if place in text], text


@schemathesis.serializer("application/x-ndjson")
def lines(ctx: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")


@contextmanager
def served(settings: Settings) -> Generator[FastAPI]:
    app = create_app(settings, FakeQueue())
    try:
        yield app
    finally:
        # schemathesis starts what an application starts, and leaves it running.
        shutdown_lifespans()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for proxies and passwords on the machine, which no request takes, costs as much as the service's answer."""
    monkeypatch.setattr("requests.sessions.get_environ_proxies", lambda *_, **__: {})
    monkeypatch.setattr("requests.sessions.get_netrc_auth", lambda *_, **__: None)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Nobody answers here, so that nothing is waited for."""
    return Settings(
        data_dir=tmp_path / "data",
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
        admin_key=SecretStr(ADMIN_KEY),
        allowed_hosts=[HOST, "127.0.0.1"],
        requests_per_minute=1_000_000,
        max_wait_s=0.01,
        # Nobody renews a lease here, and a walk takes minutes: one that ran out would make the service unready.
        lease_s=3600,
    )


@pytest.fixture
def seeds(settings: Settings, spec: dict[str, Any]) -> Seeds:
    return sow(settings, spec, ADMIN_KEY)


def configured(
    seeds: Seeds, key: str | None, examples: int = EXAMPLES, uncovered: Sequence[str] = ()
) -> schemathesis.Config:
    """
    Args:
        uncovered: operations that get examples and random requests, but not one for each part of their schema.
    """
    words = {
        "jobs": seeds.jobs,
        "trained": [seeds.trained_job],
        "doomed": seeds.doomed_jobs[:4],
        "spent": seeds.doomed_jobs[4:],
        "paused": seeds.paused_jobs,
        "waiting": seeds.waiting_jobs,
        "keys": [ADMIN_KEY],
        "key_ids": seeds.api_keys,
        "artifacts": seeds.artifacts,
        "comparisons": seeds.comparisons,
        "held_outs": seeds.held_outs,
        "tasks": seeds.tasks,
        "waiting_tasks": seeds.waiting_tasks,
        "datasets": [seeds.dataset],
        "doomed_datasets": seeds.doomed_datasets,
    }

    def of(name: str) -> dict[str, Any]:
        return {"dictionary": name, "probability": 0.8}

    parameters = {"job_id": "jobs", "artifact_id": "artifacts", "comparison_id": "comparisons", "task_id": "tasks"}
    parameters |= {"dataset_id": "datasets", "key_id": "key_ids"}
    # An id in a path is that of what the operation is for, so that it finds it in the right state.
    places = {
        "artifact_id|/comparison|/compare(/held_out)?$|/metrics$|/logs$|/merge$|/push$": ("path.job_id", "trained"),
        "^DELETE /v1/jobs/{job_id}$": ("path.job_id", "doomed"),
        "^DELETE /v1/jobs/{job_id}/artifacts$": ("path.job_id", "spent"),
        "/jobs/{job_id}/(pause|cancel)$": ("path.job_id", "waiting"),
        "/tasks/{task_id}/cancel$": ("path.task_id", "waiting_tasks"),
        "/resume$": ("path.job_id", "paused"),
        "^DELETE /v1/datasets/": ("path.dataset_id", "doomed_datasets"),
        "^POST /v1/session$": ("body.key", "keys"),
    }
    silent = {"include-name-regex": "^GET .*/events$|^POST .*/compare(/held_out)?$", "request-timeout": 1.0}
    # A request has headers that nobody declares.
    undeclared = {"include-path-regex": "/jobs/{job_id}/events$", "checks": {"negative_data_rejection": {"enabled": False}}}
    # Numbers, text and null beside an upload's lists of rows, or in their place, are passed over.
    uploads = {
        "include-name-regex": "^POST /v1/datasets(/check)?$",
        "checks": {"negative_data_rejection": {"enabled": False}},
    }
    # A deletion of files takes some kinds of them: what stays can be had, and the list may be empty, not gone.
    emptied = {"include-name-regex": "^GET /v1/jobs/{job_id}/artifacts", "checks": {"use_after_free": {"enabled": False}}}
    operations: list[dict[str, Any]] = [
        {
            "include-name-regex": "/held_out/",
            "parameters": {"path.job_id": of("trained"), "path.comparison_id": of("held_outs")},
        },
        *({"include-name-regex": where, "parameters": {name: of(word)}} for where, (name, word) in places.items()),
        silent,
        undeclared,
        uploads,
        emptied,
        *({"include-name": name, "phases": {"coverage": {"enabled": False}}} for name in uncovered),
        *(
            {"include-name": f"{method} {path}", "checks": {"positive_data_acceptance": {"enabled": False}}}
            for method, path in BEYOND_SCHEMAS
        ),
    ]
    return schemathesis.Config.from_dict(
        {
            "seed": 1,
            # Event streams do not end while nobody trains: their first events are enough.
            "max-stream-events": 2,
            "request-timeout": 20.0,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "generation": {"deterministic": True, "max-examples": examples, "database": "none", "no-shrink": True},
            "dictionaries": {name: {"values": values} for name, values in words.items()},
            "parameters": {f"path.{name}": of(source) for name, source in parameters.items()},
            "operations": operations,
            "phases": {
                # Ids are the seeds' alone, so that what one run finds the next one finds as well.
                **{name: {"extra-data-sources": {"responses": False}} for name in ("examples", "coverage", "fuzzing")},
                # Its links take a job's `dataset_id` for an id where it is null.
                "stateful": {"checks": {"positive_data_acceptance": {"enabled": False}}},
            },
        }
    )


def walk(app: FastAPI, config: schemathesis.Config, but: tuple[str, ...] = ()) -> dict[str, set[int]]:
    """Runs every phase. Returns the statuses that each operation answered with; fails with all that is wrong."""
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", app, config=config, headers={"Authorization": f"Bearer {ADMIN_KEY}"}
    )
    schema = schema.exclude(name=list(but)) if but else schema
    statuses: defaultdict[str, set[int]] = defaultdict(set)
    wrong: dict[tuple[str, str], str] = {}
    phases = {}
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError):
            wrong[event.label, event.info.title] = event.info.message
        elif isinstance(event, events.PhaseFinished):
            phases[event.phase.name.value] = event.status.value
        elif isinstance(event, events.ScenarioFinished):
            for case_id, node in event.recorder.cases.items():
                operation, found = node.value.operation.label, event.recorder.interactions.get(case_id)
                if found and found.response:
                    statuses[operation].add(found.response.status_code)
                for check in event.recorder.checks.get(case_id, []):
                    if check.failure_info:
                        said = f"{check.failure_info.failure.message}\n{check.failure_info.code_sample}"
                        wrong.setdefault((operation, check.name), said[:1500])
    assert not wrong, "\n\n".join(f"{' '.join(where)}: {what}" for where, what in wrong.items())
    assert {name for name in phases if phases[name] == "success"} >= {"examples", "coverage", "fuzzing", "stateful"}, phases
    return statuses


@pytest.mark.parametrize("uncovered", [[DRY_RUN], pytest.param([], marks=pytest.mark.long)], ids=["once", "twice"])
def test_a_tenant_is_answered_as_the_description_says(settings: Settings, seeds: Seeds, uncovered: list[str]) -> None:
    # The key of the environment has every scope, and no request revokes it.
    with served(settings) as app:
        statuses = walk(app, configured(seeds, ADMIN_KEY, uncovered=uncovered))
        operations = {f"{m.upper()} {path}" for path, each in app.openapi()["paths"].items() for m in each}
    assert set(statuses) == operations
    untouched = {name for name, found in statuses.items() if not any(status < 300 for status in found)}
    # Nobody has given this service a token of a hub, nor a job whose adapter could be merged.
    assert untouched <= {"POST /v1/jobs/{job_id}/push", "POST /v1/jobs/{job_id}/merge"}
    assert {404, 422} <= set().union(*statuses.values())


def test_another_tenant_is_answered_so_too_and_reaches_nothing(settings: Settings, seeds: Seeds) -> None:
    database = Database(settings.database)
    _, key = Access(database, settings).create("other", [Scope.WRITE, Scope.METRICS])
    database.dispose()
    with served(settings) as app:
        # Thousands of specs, which are the same to every tenant.
        statuses = walk(app, configured(seeds, key, EXAMPLES // 3), but=(SUBMIT, DRY_RUN))
    for name, found in statuses.items():
        if "/v1/keys" in name:
            assert found <= {403, 405}, name
    assert 404 in statuses["GET /v1/jobs/{job_id}"]
    assert statuses["GET /v1/jobs/{job_id}/artifacts/{artifact_id}"] <= {404, 405, 422}


def test_without_a_key_only_what_is_open_answers(settings: Settings, seeds: Seeds) -> None:
    with served(settings) as app:
        # A spec is not looked at.
        statuses = walk(app, configured(seeds, None, EXAMPLES // 3, uncovered=[SUBMIT, DRY_RUN]))
    for name, found in statuses.items():
        if not is_open(name.partition(" ")[2]):
            assert found == {401}, name


def test_the_description_says_of_every_operation_what_it_is_and_how_it_fails(settings: Settings) -> None:
    with served(settings) as app:
        document = app.openapi()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "HTTPValidationError" not in str(document)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            name, found = f"{method} {path}", set(operation["responses"])
            assert operation["summary"], name
            assert operation["description"], name
            assert "403" in found, name
            assert {"401", "429", "500", "503"} <= found or is_open(path), name
            assert ("security" in operation) != is_open(path), name
            # Any text is an Accept-Language.
            language = {"$ref": "#/components/parameters/AcceptLanguage"}
            assert operation["parameters"][-1] == language, name
            assert operation["parameters"] == [language] or "422" in found, name
            assert "requestBody" not in operation or {"408", "413", "422"} <= found, name
            assert "{" not in path or "404" in found, name
            for status, response in operation["responses"].items():
                assert response["description"], (name, status)
                if status >= "400" and path != "/readyz":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Error"}, (name, status)


def test_a_wrong_method_is_told_the_right_ones(settings: Settings) -> None:
    with TestClient(create_app(settings, FakeQueue()), BASE_URL, headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as client:
        for method, path, allowed in (
            ("PUT", "/v1/jobs", "GET, HEAD, POST"),
            ("PUT", f"/v1/jobs/{'0' * 32}", "DELETE, GET, HEAD"),
            ("GET", "/v1/jobs/validate", "POST"),
            ("DELETE", "/v1/jobs/validate", "POST"),
            ("POST", "/", "GET, HEAD"),
            ("POST", "/docs", "GET, HEAD"),
        ):
            reply = client.request(method, path)
            assert error_of(reply, 405, "method_not_allowed")["message"] == f"this path accepts {allowed}, not {method}"
            assert reply.headers["allow"] == allowed
        reply = client.head("/v1/jobs/validate")
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


def test_bodies_are_of_the_types_that_the_description_says(settings: Settings, spec: dict[str, Any]) -> None:
    with TestClient(create_app(settings, FakeQueue()), BASE_URL, headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as client:
        for field, value in (("use_lora", 0), ("max_steps", "4"), ("beta", "0.1"), ("max_steps", 2**31), ("max_steps", 4.5)):
            assert (
                error_of(client.post("/v1/jobs", json={**spec, field: value}), 422, "spec_invalid")["details"][0]["field"]
                == field
            )
        assert client.post("/v1/jobs", json={**spec, "max_steps": 4.0}).json()["spec"]["max_steps"] == 4
        for body in (b"\xff", b"[" * 50_000, b"{"):
            error_of(
                client.post("/v1/keys", content=body, headers={"content-type": "application/json"}), 422, "spec_invalid"
            )
        job_id = client.post("/v1/jobs", json=spec).json()["id"]
        for query in ("after=9223372036854775808", "after=-1"):
            error_of(client.get(f"/v1/jobs/{job_id}/events?{query}"), 422, "spec_invalid")
