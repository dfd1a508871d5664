"""Limits and authority while something is held: streams, long polls, downloads and uploads, not only at their beginning."""

import socket
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import update

from api import gate
from jobs.artifacts import ArtifactFile, ArtifactKind
from jobs.database import db_now
from jobs.places import run_dir
from jobs.records import KeyRecord
from jobs.repository import artifacts
from jobs.settings import Settings
from tests.live import Live, serving

ADMIN_KEY = "an-admin-key-of-more-than-32-letters"
# Far above the two seconds after which a key is looked at again; far below what a stream lasts.
ENDS_S = 60.0


@pytest.fixture
def live(tmp_path: Path) -> Generator[Live]:
    settings = Settings(
        data_dir=tmp_path / "data",
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
        admin_key=SecretStr(ADMIN_KEY),
        max_streams=3,
        quota_dataset_bytes=3_000_000,
    )
    settings.make_directories()
    with serving(settings) as found:
        yield found


def client_of(live: Live, **wanted: Any) -> tuple[httpx.Client, str]:
    """A client with a new key, and the key's id."""
    made = httpx.post(f"{live.url}/v1/keys", json=wanted, headers={"Authorization": f"Bearer {ADMIN_KEY}"}).json()
    return httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {made['key']}"}, timeout=ENDS_S), made["id"]


def revoke(live: Live, key_id: str) -> None:
    reply = httpx.delete(f"{live.url}/v1/keys/{key_id}", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
    assert reply.is_success


def submitted(client: httpx.Client, spec: dict[str, Any]) -> str:
    return client.post("/v1/jobs", json=spec).raise_for_status().json()["id"]


def test_a_stream_ends_with_its_key(live: Live, spec: dict[str, Any]) -> None:
    client, key_id = client_of(live, tenant="a")
    other, _ = client_of(live, tenant="a")
    job_id = submitted(client, spec)
    with (
        client.stream("GET", f"/v1/jobs/{job_id}/events") as stream,
        other.stream("GET", f"/v1/jobs/{job_id}/events") as kept,
    ):
        events, others = stream.iter_lines(), kept.iter_lines()
        assert next(events) == next(others) == "id: 1"
        revoke(live, key_id)
        assert list(events)[-1] == ""
        assert other.post(f"/v1/jobs/{job_id}/pause").is_success
        assert "event: paused" in (line for line in others if line.startswith("event:"))
    assert client.get("/v1/jobs").status_code == 401


def test_a_stream_ends_when_its_key_expires(live: Live, spec: dict[str, Any]) -> None:
    client, key_id = client_of(live, tenant="a")
    job_id = submitted(client, spec)
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        assert next(lines := stream.iter_lines()) == "id: 1"
        with live.database.transaction() as session:
            session.execute(update(KeyRecord).where(KeyRecord.id == key_id).values(expires_at=db_now()))
        assert list(lines)


def test_a_long_poll_ends_with_its_key(live: Live, spec: dict[str, Any]) -> None:
    client, key_id = client_of(live, tenant="a")
    threading.Timer(1.0, revoke, (live, key_id)).start()
    reply = client.post("/v1/jobs/validate", params={"wait_s": 110}, json=spec)
    assert reply.status_code == 401
    assert "revoked" in reply.json()["error"]["message"]


def test_an_upload_ends_with_its_key(live: Live) -> None:
    """Also for a client that keeps sending: nothing of it is read any more."""
    client, key_id = client_of(live, tenant="a")
    url = httpx.URL(live.url)
    with socket.create_connection((url.host, url.port), timeout=ENDS_S) as connection:
        head = f"POST /v1/datasets HTTP/1.1\r\nHost: {url.host}\r\n{{}}Transfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.format(f"Authorization: {client.headers['authorization']}\r\n").encode())
        connection.sendall(b"1\r\n{\r\n")
        revoke(live, key_id)
        reply = b""
        while data := connection.recv(2**16):
            reply += data
    assert reply.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in reply.lower()


def test_a_download_ends_with_its_key(live: Live, spec: dict[str, Any]) -> None:
    client, key_id = client_of(live, tenant="a")
    job_id = submitted(client, spec)
    size = 64 * 2**20
    path = run_dir(live.settings, job_id) / "attempt-1" / "log.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * size)
    with live.database.transaction() as session:
        artifacts.keep(session, "a", job_id, [ArtifactFile(ArtifactKind.LOG, "attempt-1/log.txt", size, "0" * 64)], [1])
    (file,) = client.get(f"/v1/jobs/{job_id}/artifacts").json()["artifacts"]
    got: list[int] = []

    def read(download: httpx.Response) -> None:
        for data in download.iter_raw(2**16):
            if not got:
                revoke(live, key_id)
                time.sleep(3 * gate._RECHECK_S)
            got.append(len(data))

    with client.stream("GET", file["href"]) as download, pytest.raises(httpx.RemoteProtocolError):
        read(download)
    assert 0 < sum(got) < size


def test_streams_are_counted_before_they_open(live: Live, spec: dict[str, Any]) -> None:
    client, _ = client_of(live, tenant="a")
    job_id = submitted(client, spec)
    statuses: list[int] = []
    ended = threading.Event()

    def read() -> None:
        with client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
            statuses.append(stream.status_code)
            if stream.status_code == 200:
                ended.wait()

    readers = [threading.Thread(target=read) for _ in range(40)]
    for reader in readers:
        reader.start()
    while len(statuses) < 40:
        time.sleep(0.05)
    assert sorted(statuses) == [200] * 3 + [429] * 37
    ended.set()
    for reader in readers:
        reader.join()

    def opens() -> bool:
        with client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
            return stream.status_code == 200

    # The server sees that a reader has left when it sends the next time.
    assert client.post(f"/v1/jobs/{job_id}/pause").is_success
    deadline = time.monotonic() + ENDS_S
    while not opens():
        assert time.monotonic() < deadline


def test_bytes_count_against_the_quota_while_they_arrive(live: Live) -> None:
    """Four uploads of 100 MB at once, of a tenant that may keep 3 MB: their parts together stay near the quota."""
    client, _ = client_of(live, tenant="a")
    line = b'{"prompt": "' + b"a" * 1000 + b'", "chosen": "b", "rejected": "c"}\n'
    most, statuses = 0, list[int]()

    def upload() -> None:
        try:
            statuses.append(client.post("/v1/datasets", content=(line * 100 for _ in range(1000))).status_code)
        except httpx.TransportError:
            # The reply came before the end of the body.
            statuses.append(413)

    uploads = [threading.Thread(target=upload) for _ in range(4)]
    for each in uploads:
        each.start()
    while any(each.is_alive() for each in uploads):
        parts = list(live.settings.datasets_dir.glob(".*.part"))
        most = max(most, sum(path.stat().st_size for path in parts if path.exists()))
        time.sleep(0.01)
    assert set(statuses) == {413}
    assert most < 3_000_000 + 4 * 2 * 2**20
    assert list(live.settings.datasets_dir.iterdir()) == []
    assert client.post("/v1/datasets", content=line * 10).status_code == 201, "what was refused counts no longer"
