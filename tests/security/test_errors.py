"""Errors tell what was wrong and nothing of the inside: one shape, no traces, no places; ids nobody guesses."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from jobs.database import Database
from jobs.places import without_places
from jobs.settings import SHIPPED_MODELS_DIR, Settings
from tests.api import client, database, queue
from tests.live import settings
from trainer_core.errors import CODES, error_dict

__all__ = ["client", "database", "queue", "settings"]

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
INSIDE = re.compile(
    r'Traceback|File "|line \d+, in |site-packages|\.py\b|SELECT |sqlalchemy|sqlite3\.|psycopg|0x[0-9a-f]{8}'
)
BODIES: list[tuple[str, bytes]] = [
    ("application/json", b"{"),
    ("application/json", b"[]"),
    ("application/json", b'"x"'),
    ("application/json", b'{"method": {"a": [1, {"b": null}]}}'),
    ("application/json", b"\xff\xfe\x00"),
    ("application/json", b'{"a": ' * 5000),
    ("text/html", b"<script>"),
    ("application/xml", b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>'),
    ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=x; filename=../x\r\n\r\ny\r\n--x--"),
    ("application/x-www-form-urlencoded", b"a=b&a=%00"),
    ("", b""),
]
IDS = ["0" * 32, "x", "%00", "0" * 31, "G" * 32, "1", "'; DROP TABLE jobs; --", "{{7*7}}"]
QUERIES = [
    "",
    "?limit=-1",
    "?limit=999999999999999999999",
    "?cursor=%00",
    "?wait_s=nan",
    "?format=../x",
    "?after=-1",
    "?name=%ff",
]


def check(reply: Any, settings: Settings, what: Any) -> None:
    """An error is of the one shape, and no reply tells of the inside."""
    assert reply.status_code < 500, (what, reply.text[:300])
    if reply.status_code >= 400 and reply.request.method != "HEAD":
        error = reply.json()["error"]
        fields = {"code", "message", "message_code", "params", "hint", "retryable", "user_fault", "details"}
        assert set(error) == fields, what
        assert error["code"] in CODES, what
        assert not INSIDE.search(reply.text), (what, reply.text[:500])
    for place in (str(ROOT), str(settings.data_dir.resolve()), str(SHIPPED_MODELS_DIR)):
        assert place not in reply.text, (what, reply.text[:500])


def test_whatever_is_sent_errors_have_one_shape(client: TestClient, settings: Settings, spec: dict[str, Any]) -> None:
    client.post("/v1/jobs", json=spec)
    paths = set(client.app.openapi()["paths"]) | {"/", "/nothing", "/v1", "/v1/jobs/", "/docs/x"}  # type: ignore[attr-defined]
    for path in sorted(paths):
        named = re.findall(r"{\w+}", path)
        for identity in IDS if named else [""]:
            concrete = re.sub(r"{\w+}", lambda _, value=identity: value.replace("{", "%7b"), path)
            for method in METHODS:
                check(client.request(method, concrete), settings, (method, concrete))
        concrete = re.sub(r"{\w+}", "0" * 32, path)
        for kind, body in BODIES:
            for method in ("POST", "DELETE"):
                check(client.request(method, concrete, content=body, headers={"Content-Type": kind}), settings, (path, body))
        for query in QUERIES:
            check(client.get(concrete + query), settings, (path, query))


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=\xff"},
        {"Last-Event-ID": "x" * 5000},
        {"Idempotency-Key": "\xe9"},
        {"Content-Type": "application/json; charset=\xff"},
        {"Content-Encoding": "gzip"},
        {"Accept": "\xff" * 100},
        {"Cookie": "tafdil_session=" + "\xff" * 100},
        {"Authorization": "Bearer \xff"},
    ],
)
def test_odd_headers_are_no_defect(
    client: TestClient, settings: Settings, spec: dict[str, Any], headers: dict[str, str]
) -> None:
    sent = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    job = client.post("/v1/jobs", json=spec).json()["id"]
    for path in ("/v1/jobs", f"/v1/jobs/{job}", f"/v1/jobs/{job}/artifacts/{'0' * 32}", "/v1/session"):
        check(client.get(path, headers=sent), settings, (path, headers))  # type: ignore[arg-type]
    check(client.post("/v1/jobs", content=json.dumps(spec), headers=sent), settings, headers)  # type: ignore[arg-type]


def test_a_defect_and_a_broken_database_tell_nothing(client: TestClient, database: Database, spec: dict[str, Any]) -> None:
    job = client.post("/v1/jobs", json=spec).json()["id"]
    service = client.app.state.service  # type: ignore[attr-defined]
    with database.transaction() as session:
        session.execute(text("DROP TABLE metric_points"))
    broken = client.get(f"/v1/jobs/{job}/metrics")
    assert broken.status_code == 503
    assert broken.json()["error"]["code"] == "internal"
    assert not INSIDE.search(broken.text)
    assert "metric_points" not in broken.text
    client.app.state.service = None  # type: ignore[attr-defined]
    try:
        defect = client.get("/v1/jobs")
    finally:
        client.app.state.service = service  # type: ignore[attr-defined]
    assert defect.status_code == 500
    assert defect.json()["error"]["message"] == "an unexpected error; the server's log has the details"


def test_what_a_worker_tells_of_a_failure_names_no_place_of_the_machine(settings: Settings, tmp_path: Path) -> None:
    models = settings.model_copy(update={"models_dir": tmp_path / "models"})
    for folder, name in (
        (models.models_dir, "Qwen/small"),
        (SHIPPED_MODELS_DIR, "tafdil/tiny-arabic-qwen-2"),
        (models.data_dir, "rows.jsonl"),
        (models.runs_dir, "0/attempt-1/output/x"),
    ):
        known = error_dict("model_refused", f"the model '{folder}/{name}' cannot be loaded: {folder}/{name} is odd")
        known["details"] = [{"field": "model_name", "reason": f"{folder}/{name} is odd", "line": 3}]
        shown = without_places(models, known)
        assert shown["message"] == f"the model '{name}' cannot be loaded: {name} is odd"
        assert shown["details"] == [{"field": "model_name", "reason": f"{name} is odd", "line": 3}]


def test_ids_cannot_be_guessed(client: TestClient, spec: dict[str, Any]) -> None:
    ids = [client.post("/v1/jobs", json=spec).json()["id"] for _ in range(20)]
    row = '{"prompt": "س", "chosen": "نعم", "rejected": "لا"}\n'.encode()
    ids += [client.post("/v1/datasets", content=row).json()["id"] for _ in range(20)]
    # Random but for the four bits of the version and two of the variant.
    assert all(re.fullmatch(r"[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", each) for each in ids)
    assert len({each[:8] for each in ids}) == len({each[-8:] for each in ids}) == len(ids)
    described = client.app.openapi()["components"]["schemas"]  # type: ignore[attr-defined]
    for name in ("Job", "Dataset", "Task", "Artifact", "Comparison", "Key"):
        assert "number" not in described[name]["properties"], name
