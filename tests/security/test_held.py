"""Limits and authority while something is held: streams, long polls, downloads and uploads, not only at their beginning."""

import asyncio
import gzip
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import event, update
from starlette.types import Message, Receive, Scope, Send

from api import gate
from api.limits import BodyLimit, ReadLimit
from api.sse import Waker
from api.waiting import answered
from jobs.artifacts import ArtifactFile, ArtifactKind
from jobs.database import Database, db_now
from jobs.places import run_dir
from jobs.records import KeyRecord, TaskRecord
from jobs.repository import artifacts, tasks
from jobs.service import JobService
from jobs.settings import Settings
from jobs.states import TaskKind
from jobs.uploads import Room
from tests.disks import no_file_above
from tests.fakes import FakeQueue
from tests.live import Live, serving
from trainer_core.errors import error_dict

ADMIN_KEY = "an-admin-key-of-more-than-32-letters"
# Far above the two seconds after which a key is looked at again; far below what a stream lasts.
ENDS_S = 60.0
# A machine that is busy with other work looks at a key later than that.
LATE_S = 20.0
# Messages of a request that nothing ends.
LONG = 1000


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
    ended = threading.Event()

    def pause_and_resume() -> None:
        """A stream of events that ends on its own, with the job, only long after the key."""
        last_at = time.monotonic() + ENDS_S
        while not ended.wait(0.5) and time.monotonic() < last_at:
            for action in ("pause", "resume"):
                assert other.post(f"/v1/jobs/{job_id}/{action}").is_success
        assert other.post(f"/v1/jobs/{job_id}/cancel").is_success

    with (
        client.stream("GET", f"/v1/jobs/{job_id}/events") as stream,
        other.stream("GET", f"/v1/jobs/{job_id}/events") as kept,
        ThreadPoolExecutor(1) as pool,
    ):
        events, others = stream.iter_lines(), kept.iter_lines()
        assert next(events) == next(others) == "id: 1"
        revoke(live, key_id)
        revoked_at = time.time()
        changing = pool.submit(pause_and_resume)
        seen = list(events)
        ended.set()
        changing.result()
        assert seen[-1] == ""
        data = [json.loads(line.removeprefix("data: ")) for line in seen if line.startswith("data: ")]
        latest = max(datetime.fromisoformat(each["at"]).timestamp() for each in data)
        assert latest < revoked_at + gate._RECHECK_S + LATE_S
        assert "event: cancelled" in list(others), "the other key's stream lasts as long as the job"
        assert "event: cancelled" not in seen
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
    gives_up = threading.Event()

    def send(connection: socket.socket) -> bool:
        """Whether the connection was closed in the middle of the body."""
        try:
            while not gives_up.wait(0.01):
                connection.sendall(b"1\r\n{\r\n")
        except OSError:
            return True
        return False

    with socket.create_connection((url.host, url.port), timeout=ENDS_S) as connection, ThreadPoolExecutor(1) as pool:
        head = f"POST /v1/datasets HTTP/1.1\r\nHost: {url.host}\r\n{{}}Transfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.format(f"Authorization: {client.headers['authorization']}\r\n").encode())
        sending = pool.submit(send, connection)
        try:
            revoke(live, key_id)
            reply = connection.recv(2**16)
            with suppress(ConnectionResetError):
                while data := connection.recv(2**16):
                    reply += data
            assert sending.result(ENDS_S)
        finally:
            gives_up.set()
    assert reply.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in reply.lower()


async def uploads() -> None:
    async def receive() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"{", "more_body": True}

    async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(LONG):
            await receive()

    scope = {"type": "http", "method": "POST", "path": "/v1/datasets"}
    await BodyLimit(reads_all, 2**20, ENDS_S)(scope, receive, nowhere)


async def downloads() -> None:
    async def writes(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(LONG):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    await ReadLimit(writes, ENDS_S)({"type": "http"}, nothing, nowhere)


async def streams() -> None:
    waker = Waker(Settings())

    async def has_news() -> None:
        while True:
            await asyncio.sleep(0)
            for waiting in waker._waiting["job"]:
                waiting.set()

    news = asyncio.create_task(has_news())
    try:
        for _ in range(LONG):
            await waker.wait("job", ENDS_S)
    finally:
        news.cancel()


async def nothing() -> Message:
    raise AssertionError


async def nowhere(message: Message) -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("held", [uploads, downloads, streams])
def test_what_is_ended_ends_whatever_arrives_in_that_moment(held: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """With the result of what it waits for, too: `asyncio.wait_for` of Python 3.11 would return that, and go on."""

    async def ends_after(turns: int) -> bool:
        request = asyncio.create_task(held())
        for _ in range(turns):
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait([request])
        return request.cancelled()

    async def every() -> list[int]:
        return [turns for turns in range(12) if not await ends_after(turns)]

    assert asyncio.run(every()) == []


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


def test_requests_that_wait_count_as_streams(live: Live, spec: dict[str, Any]) -> None:
    """Beyond the limit a request is refused before its task is stored; one that does not wait is not counted."""
    client, _ = client_of(live, tenant="a")
    other, _ = client_of(live, tenant="b")
    validated = "/v1/jobs/validate"
    waiting = {"wait_s": 110}
    replies: list[int] = []

    def ask() -> None:
        replies.append(client.post(validated, params=waiting, json=spec).status_code)

    asking = [threading.Thread(target=ask) for _ in range(8)]
    for each in asking:
        each.start()
    deadline = time.monotonic() + ENDS_S
    while len(replies) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert replies == [429] * 5
    refused = client.post(validated, params=waiting, json=spec)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
    assert refused.json()["error"]["message_code"] == "too_many_streams"
    assert client.post(validated, params={"wait_s": 0}, json=spec).status_code == 202
    assert other.get("/v1/jobs").status_code == 200
    with live.database.transaction() as session:
        held = [tasks.claim_next(session, [TaskKind.VALIDATE], 60) for _ in range(4)]
        assert tasks.claim_next(session, [TaskKind.VALIDATE], 60) is None, "of those that were refused none is stored"
        for task in filter(None, held):
            assert tasks.finish(session, task, error=error_dict("internal", "x"))
    for each in asking:
        each.join()
    assert replies == [429] * 5 + [500] * 3
    assert client.post(validated, params={"wait_s": 0.1}, json=spec).status_code == 202, "the places are free again"


def test_requests_that_wait_share_their_queries(tmp_path: Path) -> None:
    """300 at once, for 300 tasks, while no wake-ups arrive: as many queries as one of them would need."""
    settings = Settings(data_dir=tmp_path / "data", redis_url=SecretStr("redis://127.0.0.1:1/0"))
    settings.make_directories()
    service = JobService(Database(settings.database), FakeQueue(), settings)
    service.database.migrate()
    asked = [service.ask(TaskKind.VALIDATE, {}) for _ in range(300)]
    queries: list[str] = []

    async def wait_for_all() -> list[TaskRecord]:
        waker = Waker(settings)
        waiting = [asyncio.create_task(answered(service, waker, task, 60)) for task in asked]
        await asyncio.sleep(3)
        event.listen(service.database.engine, "before_cursor_execute", lambda *found: queries.append(found[2]))
        await asyncio.sleep(3)
        seen = len([query for query in queries if "SELECT" in query])
        with service.database.transaction() as session:
            while task := tasks.claim_next(session, [TaskKind.VALIDATE], 60):
                tasks.finish(session, task, {"number": task.number})
        found = await asyncio.gather(*waiting)
        assert 0 < seen < 60, "each of 300 would ask six times"
        return found

    assert [task.result for task in asyncio.run(wait_for_all())] == [{"number": task.number} for task in asked]
    service.database.dispose()


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


def packed(lines: Iterable[str]) -> bytes:
    return gzip.compress("\n".join(lines).encode(), 1)


@pytest.mark.parametrize("on_invalid", ["refuse", "skip"])
def test_bytes_count_against_the_quota_while_they_are_written_anew(live: Live, on_invalid: str) -> None:
    """A packed file is small when it arrives. Its rows, or those that are skipped, are far larger than the quota."""
    client, _ = client_of(live, tenant="a")
    params = {"on_invalid": on_invalid}
    row = {"prompt": "س" * 1000, "chosen": "نعم"}
    bomb = packed(itertools.repeat(json.dumps(row), 10_000))
    if on_invalid == "refuse":
        bomb = packed(["prompt,chosen,rejected", *itertools.repeat(f"{row['prompt']},نعم,لا", 10_000)])
    assert len(bomb) < 10**6
    # What was written beyond the quota would be refused for another reason.
    with no_file_above(6 * 10**6):
        reply = client.post("/v1/datasets", content=bomb, params=params)
    assert (reply.status_code, reply.json()["error"]["message_code"]) == (413, "quota_bytes")
    assert list(live.settings.datasets_dir.iterdir()) == []
    assert Room._arriving == {}


def test_what_is_written_anew_counts_once(live: Live) -> None:
    """A table of 2 MB, most of whose rows are skipped, fits a quota of 3 MB; a second one does not."""
    client, _ = client_of(live, tenant="a")
    row = "س" * 1000
    table = "\n".join(["prompt,chosen,rejected", *[f"{row},نعم,لا", f"{row},نعم,", f"{row},نعم,"] * 330]).encode()
    assert 1_900_000 < len(table) < 2_100_000
    params = {"on_invalid": "skip"}
    stored = client.post("/v1/datasets", content=table, params=params).raise_for_status().json()
    assert stored["skipped_rows"] == 660
    assert len(table) < stored["size_bytes"] < 2_200_000
    refused = client.post("/v1/datasets", content=table, params=params)
    assert (refused.status_code, refused.json()["error"]["message_code"]) == (413, "quota_bytes")
    assert client.delete(f"/v1/datasets/{stored['id']}").json()["freed_bytes"] == stored["size_bytes"]
    assert client.post("/v1/datasets", content=table, params=params).status_code == 201
