"""The API: killed at the worst moments, and used by clients that are slow, stuck, hurried or hostile."""

import json
import os
import random
import signal
import socket
import time
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import psutil
import pytest

from tafdil.client import Client
from tafdil.errors import RateLimited, Unreachable
from tests.faults.conftest import StartRig
from tests.faults.test_processes import finished
from tests.rig.stack import Rig, job_spec, running
from tests.stack import ENOUGH_S, until
from tests.training import ON_LABELS, ON_PAIRS


@pytest.mark.parametrize("side", ["before", "after"])
def test_the_api_dies_around_the_publish_of_a_job(start_rig: StartRig, side: str) -> None:
    """The job is stored, and the client may get no answer. It asks again with its key: there is one job, and it runs."""
    rig, client = start_rig(settings={"TAFDIL_REPUBLISH_S": "1"})
    _relaunch_api(rig, f"publish:1:{side}")
    # The message leaves beside the reply, so either may be first.
    with suppress(Unreachable):
        client.submit(job_spec(3), "my-order")
    rig.service("api").process.wait(ENOUGH_S)
    _relaunch_api(rig, None)
    job_id = client.submit(job_spec(3), "my-order")["id"]
    assert finished(rig, client, job_id, 3)["attempt"] == 1
    assert len(list(client.jobs())) == 1


def _relaunch_api(rig: Rig, point: str | None) -> None:
    service = rig.service("api")
    if rig.is_up("api"):
        os.kill(rig.pid("api"), signal.SIGKILL)
    service.environment = {**rig.environment, **({"TAFDIL_TEST_FAILPOINT": point} if point else {})}
    rig.relaunch("api")

    def answers() -> bool:
        try:
            return httpx.get(f"{rig.url}/healthz").is_success
        except httpx.TransportError:
            return False

    until(answers)


def test_a_stream_survives_the_api(start_rig: StartRig) -> None:
    """The API is killed twice under a reader that comes back with the last event's id: it sees every event once."""
    rig, client = start_rig()
    job_id = client.submit(job_spec(150, behaviour={"step_s": 0.05}))["id"]
    running(client, job_id)
    seen: list[int] = []
    kills = 0
    while True:
        try:
            for event in client.events(job_id, after=seen[-1] if seen else 0):
                seen.append(event["id"])
                if kills < 2 and len(seen) == 40 * (kills + 1):
                    kills += 1
                    os.kill(rig.pid("api"), signal.SIGKILL)
            break
        except (Unreachable, httpx.HTTPError):
            until(lambda: rig.watch() or client.ready())
    assert kills == 2
    assert seen == list(range(1, len(seen) + 1))
    assert finished(rig, client, job_id, 150)["attempt"] == 1


def _open(rig: Rig, request: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", rig.port), timeout=ENOUGH_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(request)
    return connection


def test_slow_and_stuck_clients_stop_nobody(start_rig: StartRig) -> None:
    """300 readers that never read and 60 senders that never end: others are served, memory stays, the senders are closed."""
    rig, client = start_rig(settings={"TAFDIL_BODY_TIMEOUT_S": "3", "TAFDIL_READ_TIMEOUT_S": "3"})
    job_id = client.submit(job_spec(400, behaviour={"step_s": 0.02}))["id"]
    running(client, job_id)
    api = psutil.Process(rig.pid("api"))
    client.job(job_id)
    before = api.memory_info().rss
    with ExitStack() as stack:
        stream = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        upload = b"POST /v1/datasets HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n{"
        post = (
            b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        )
        for _ in range(300):
            stack.enter_context(_open(rig, stream))
        senders = [stack.enter_context(_open(rig, request)) for request in [upload, post] * 30]
        for _ in range(20):
            assert client.job(job_id)["id"] == job_id
            time.sleep(0.05)
        for sender in senders:
            reply = b""
            while data := sender.recv(2**16):
                reply += data
            assert reply.startswith(b"HTTP/1.1 408"), reply[:200]
            assert b'"code":"timeout"' in reply
        assert client.wait(job_id, ENOUGH_S)["state"] == "succeeded"
        assert api.memory_info().rss - before < 200 * 2**20
    until(lambda: len(api.net_connections()) < 30)

    def steps() -> list[int] | None:
        # A stream whose reader is gone counts until the service has noticed it.
        with suppress(RateLimited):
            return [event["data"]["step"] for event in client.events(job_id) if event["event"] == "metrics"]
        return None

    told = until(steps)
    assert told == list(range(1, 401)), "the training was not disturbed"
    assert not list(rig.data_dir.glob("datasets/.*.part")), "what was given up leaves no file"


HOSTILE: list[tuple[str, bytes]] = [
    ("a deep list", b"[" * 100_000),
    ("a deep object", b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    ("a huge number", b'{"method": "ipo", "max_steps": 1' + b"0" * 5000 + b"}"),
    ("a huge exponent", b'{"method": "ipo", "beta": 1e999999999}'),
    ("a long list", b'{"method": "ipo", "target_modules": [' + b'"x",' * 200_000 + b'"x"]}'),
    ("many keys", b"{" + b",".join(b'"k%d": 1' % i for i in range(50_000)) + b"}"),
    ("one key many times", b"{" + b'"method": "ipo",' * 50_000 + b'"a": 1}'),
    ("half a surrogate", b'{"method": "ipo", "name": "\\ud800"}'),
    ("a NUL", b'{"method": "ipo", "name": "\\u0000"}'),
    ("bytes that are no UTF-8", b'{"method": "\xff\xfe"}'),
    ("a long name", json.dumps({"method": "ipo", "name": "\u0627" * 300_000}).encode()),
    ("control characters", b'{"method": "ipo",\x00\x01 "name": "x"}'),
    ("NaN", b'{"method": "ipo", "beta": NaN}'),
    ("a number for a string", b'{"method": 7}'),
    ("nothing", b""),
    ("too much", b'{"name": "' + b"x" * 2**21 + b'"}'),
]


def test_hostile_bodies_are_refused_and_cost_nothing(start_rig: StartRig) -> None:
    rig, client = start_rig()
    api = psutil.Process(rig.pid("api"))
    job_id = client.submit(job_spec(3))["id"]
    before = api.memory_info().rss
    noise = random.Random(5)
    bodies = HOSTILE + [(f"noise {i}", noise.randbytes(noise.randrange(1, 5000))) for i in range(40)]
    paths = [
        "/v1/jobs",
        f"/v1/jobs/{job_id}/compare",
        f"/v1/jobs/{job_id}/cancel",
        f"/v1/jobs/{job_id}/rerun",
        "/v1/datasets",
    ]
    with httpx.Client(base_url=rig.url, timeout=ENOUGH_S) as http:
        for path in paths:
            for name, body in bodies:
                if name == "nothing" and path.endswith(("cancel", "rerun")):
                    continue
                reply = http.post(path, content=body, headers={"Content-Type": "application/json"})
                assert 400 <= reply.status_code < 500, (path, name, reply.status_code, reply.text[:300])
                assert set(reply.json()["error"]) >= {"code", "message", "hint"}
                assert "Traceback" not in reply.text
    assert api.memory_info().rss - before < 200 * 2**20
    assert finished(rig, client, job_id, 3)
    assert len(list(client.jobs())) == 1


def rows(*values: Any) -> bytes:
    return "\n".join(json.dumps(value, ensure_ascii=False) for value in values).encode()


PAIR = {"prompt": "س", "chosen": "نعم", "rejected": "لا"}
KTO = {"prompt": "س", "completion": "نعم", "label": True}
BAD_DATA: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("blank", b"\n\n  \n"),
    ("no JSON", b"hello"),
    ("a number", b"7"),
    ("a string", b'"rows"'),
    ("a list of numbers", b"[1, 2]"),
    ("an empty list", b"[]"),
    ("an empty document", b"{}"),
    ("empty parts", b'{"train": [], "validation": []}'),
    ("no training part", b'{"validation": [' + rows(PAIR) + b"]}"),
    ("a part that is no list", b'{"train": 3}'),
    ("half a document", b'{"train": [' + rows(PAIR)),
    ("half a line", rows(PAIR)[:-4]),
    ("half a line at the end", rows(PAIR, PAIR)[:-4]),
    ("cut UTF-16", rows(PAIR).decode().encode("utf-16")[:-5]),
    ("Windows-1256", b'{"prompt": "\xd3", "chosen": "\xe4", "rejected": "\xe1"}'),
    ("cut UTF-8", rows(PAIR).replace("س".encode(), "س".encode()[:1])),
    ("half a surrogate", b'{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}'),
    ("no prompt", rows({"chosen": "a", "rejected": "b"})),
    ("no chosen", rows({"prompt": "x", "rejected": "b"})),
    ("no rejected", rows({"prompt": "x", "chosen": "b"})),
    ("no label", rows({"prompt": "x", "completion": "b"})),
    ("no completion", rows({"prompt": "x", "label": True})),
    ("a label that is a string", rows({**KTO, "label": "maybe"})),
    ("a label that is a number", rows({**KTO, "label": 3})),
    ("a label that is null", rows({**KTO, "label": None})),
    ("an empty prompt", rows({**PAIR, "prompt": ""})),
    ("a blank prompt", rows({**PAIR, "prompt": "  "})),
    ("an empty answer", rows({**PAIR, "chosen": ""})),
    ("equal answers", rows({**PAIR, "rejected": PAIR["chosen"]})),
    ("a prompt that is a number", rows({**PAIR, "prompt": 4})),
    ("a prompt that is null", rows({**PAIR, "prompt": None})),
    ("an answer that is a list of numbers", rows({**PAIR, "chosen": [1]})),
    ("a message without a role", rows({**PAIR, "prompt": [{"content": "x"}]})),
    ("a message with an unknown role", rows({**PAIR, "prompt": [{"role": "king", "content": "x"}]})),
    ("a message without content", rows({**PAIR, "prompt": [{"role": "user"}]})),
    ("no messages", rows({**PAIR, "prompt": []})),
    ("an answer by the user", rows({**PAIR, "chosen": [{"role": "user", "content": "x"}]})),
    ("mixed kinds", rows(PAIR, KTO)),
    ("a row that is a list", rows(PAIR, [1])),
    ("a row that is null", rows(PAIR, None)),
    ("a broken gzip", b"\x1f\x8b\x08\x00" + b"x" * 50),
    ("a broken Parquet", b"PAR1" + b"x" * 50 + b"PAR1"),
    ("a zip archive", b"PK\x03\x04" + b"\x00" * 100),
    ("a binary file", bytes(range(256)) * 10),
    ("CSV without an answer", "prompt,chosen,rejected\nس,نعم,\n".encode()),
]


def test_bad_data_never_reaches_a_worker(start_rig: StartRig) -> None:
    """As an upload and as a file in the data directory: refused with the reason, before any job exists."""
    rig, client = start_rig(workers=0)
    assert len(BAD_DATA) >= 40
    with httpx.Client(base_url=rig.url, timeout=ENOUGH_S) as http:
        for name, body in BAD_DATA:
            reply = http.post("/v1/datasets", content=body)
            assert reply.status_code == 422, (name, reply.status_code, reply.text[:300])
            # Which encoding it is, or from which score on an answer is good, is a question.
            code = "data_unclear" if name in ("Windows-1256", "a label that is a number") else "data_invalid"
            assert reply.json()["error"]["code"] == code, name
            (rig.data_dir / "bad.jsonl").write_bytes(body)
            for method in (ON_PAIRS, ON_LABELS):
                reply = http.post("/v1/jobs", json=job_spec(3, method=method, dataset_path="bad.jsonl"))
                assert (reply.status_code, reply.json()["error"]["code"]) == (422, code), (name, reply.text[:300])
    assert not list(client.jobs())
    assert not list(rig.data_dir.glob("datasets/*"))


def test_two_clients_of_one_stream_see_the_same(start_rig: StartRig) -> None:
    rig, client = start_rig()
    job_id = client.submit(job_spec(10))["id"]
    with Client(rig.url) as other:
        assert list(client.events(job_id)) == list(other.events(job_id))
