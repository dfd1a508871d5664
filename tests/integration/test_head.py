"""HEAD: what GET would say, without the body, and without reading what the body would be made of."""

import asyncio
import io
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from api.files import file_response
from api.head import Head
from jobs.artifacts import ArtifactFile, ArtifactKind
from jobs.places import run_dir
from jobs.repository import artifacts, jobs
from jobs.states import Cause
from tests.api import error_of, queue
from tests.conftest import DATA
from tests.integration.test_access import admin, app, client_of, database_of, every_route

__all__ = ["admin", "app", "queue"]

LOG = b"0123456789"
# A file of each folder that is served as it is.
MOUNTED = {"/assets": "/index.html", "/static-offline-docs": "/swagger-ui.css"}


@pytest.fixture
def tenant(admin: TestClient, spec: dict[str, Any]) -> tuple[TestClient, dict[str, str]]:
    """A client, and the ids of one of everything that a path can name."""
    client = client_of(admin, tenant="mine")
    rows = (DATA / "pairs_train.jsonl").read_bytes() + b'{"prompt": "left out"}\n'
    dataset = client.post("/v1/datasets", params={"on_invalid": "skip"}, content=rows).json()
    job = client.post("/v1/jobs", json=spec).json()
    with database_of(admin).transaction() as session:
        claimed = jobs.claim_next(session, "worker", 60)
        assert claimed
        jobs.finish(session, jobs.Fence(claimed.id, 1, str(claimed.lease_token)), Cause.FINISH, {"artifact_path": "x"})
        artifacts.add(session, "mine", job["id"], [ArtifactFile(ArtifactKind.LOG, "log.txt", len(LOG), "0" * 64)])
    log = run_dir(admin.app.state.service.settings, job["id"]) / "log.txt"  # type: ignore[attr-defined]
    log.parent.mkdir(parents=True)
    log.write_bytes(LOG)
    artifact = client.get(f"/v1/jobs/{job['id']}/artifacts").json()["artifacts"][0]["id"]
    asked = client.post(f"/v1/jobs/{job['id']}/compare", json={"prompt": "س"}, params={"wait_s": 0}).json()
    held_out = client.post(f"/v1/jobs/{job['id']}/compare/held_out", params={"wait_s": 0}).json()["id"]
    waiting = client.post("/v1/jobs", json=spec).json()["id"]
    ids = {
        "held_out": held_out,
        "job_id": job["id"],
        "dataset_id": dataset["id"],
        "comparison_id": asked["id"],
        "waiting": waiting,
    }
    return client, {**ids, "task_id": asked["id"], "artifact_id": artifact}


def test_head_says_what_get_says_on_every_route(
    app: FastAPI, admin: TestClient, tenant: tuple[TestClient, dict[str, str]]
) -> None:
    client, ids = tenant
    routes = {path for method, path in every_route(app) if method == "GET"}
    assert {"/", "/docs", "/healthz", "/readyz", "/metrics", "/v1/jobs/{job_id}/artifacts/{artifact_id}"} <= routes
    for path in sorted(routes):
        concrete = path.replace("{language}", "ar").replace("held_out/{comparison_id}", f"held_out/{ids['held_out']}")
        for name, value in ids.items():
            concrete = concrete.replace(f"{{{name}}}", value)
        concrete += MOUNTED.get(path, "")
        caller = admin if path in {"/metrics", "/v1/keys"} else client
        head = caller.head(concrete)
        assert head.content == b""
        if path.endswith("/{comparison_id}/events"):
            # Nobody answers this one, so a GET would not end.
            assert head.headers["content-type"].startswith("text/event-stream")
            assert head.status_code == 200
            continue
        get = caller.get(concrete)
        assert get.status_code < 400 or path == "/readyz", (path, get.text)
        assert head.status_code == get.status_code, path
        # The metrics count the requests of this test.
        left_out = {"content-length"} if path == "/metrics" else set()
        told = [{k: v for k, v in reply.headers.items() if k not in left_out} for reply in (head, get)]
        assert told[0] == told[1], path
    head = client.head(f"/v1/jobs/{ids['waiting']}/events")
    assert (head.status_code, head.headers["cache-control"]) == (200, "no-store")


def test_head_of_a_download(tenant: tuple[TestClient, dict[str, str]]) -> None:
    client, ids = tenant
    path = f"/v1/jobs/{ids['job_id']}/artifacts/{ids['artifact_id']}"
    tag = f'"{"0" * 64}"'
    # RFC 9110, section 14.2: ranges are defined for GET alone.
    for asked in ({}, {"Range": "bytes=0-4"}, {"Range": "bytes=999-"}):
        head = client.head(path, headers=asked)
        assert head.status_code == 200
        assert head.headers["content-length"] == str(len(LOG))
        assert (head.headers["etag"], head.headers["accept-ranges"]) == (tag, "bytes")
        assert head.headers["content-type"] == "application/octet-stream"
    assert client.head(path, headers={"If-None-Match": tag}).status_code == 304


def test_head_is_refused_counted_and_limited_as_get_is(
    app: FastAPI, admin: TestClient, tenant: tuple[TestClient, dict[str, str]]
) -> None:
    client, ids = tenant
    other = client_of(admin, tenant="other")
    path = f"/v1/jobs/{ids['job_id']}"
    assert other.head(path).status_code == 404
    assert client.head("/v1/keys").status_code == client.head("/metrics").status_code == 403
    assert TestClient(app, str(client.base_url)).head("/v1/jobs").status_code == 401
    assert client.head("/v1/jobs?limit=x").status_code == 422
    reply = client.head("/v1/jobs/validate")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    error_of(client.get("/v1/jobs/validate"), 405, "method_not_allowed")
    counted = admin.get("/metrics").text
    assert 'tafdil_http_requests_total{method="HEAD",route="/v1/jobs/{job_id}",status="404"} 1.0' in counted
    assert "tafdil_http_requests_open 1.0" in counted, "the scrape itself and nothing else"


class _Unread(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise AssertionError("HEAD reads no file")


async def _exchange(app: Any, method: str) -> list[MutableMapping[str, Any]]:
    """What the application sends in reply to a request without a body."""
    sent: list[MutableMapping[str, Any]] = []
    is_first = True

    async def receive() -> dict[str, Any]:
        nonlocal is_first
        if is_first:
            is_first = False
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    for version in ("2.0", "2.4"):  # of which the framework streams in different ways
        sent.clear()
        is_first = True
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": version},
            "method": method,
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "headers": [],
        }
        await app(scope, receive, send)
        assert scope["method"] == method
    return sent


def test_head_starts_no_stream_and_reads_no_file() -> None:
    started: list[str] = []

    async def forever() -> AsyncIterator[str]:
        started.append("stream")
        while True:
            await asyncio.sleep(0)
            yield "data: x\n\n"

    file = _Unread()

    async def stream(_: Request) -> StreamingResponse:
        return StreamingResponse(forever(), media_type="text/event-stream")

    async def download(_: Request) -> Any:
        return file_response(file, 15 * 2**30, "model", "0" * 64, {})

    for endpoint, length in ((stream, None), (download, str(15 * 2**30).encode())):
        sent = asyncio.run(asyncio.wait_for(_exchange(Head(Starlette(routes=[Route("/", endpoint)])), "HEAD"), 20))
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        assert dict(sent[0]["headers"]).get(b"content-length") == length
        assert sent[1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert not started
    assert file.closed
