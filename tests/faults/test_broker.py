"""A broker that is frozen, slow or swallows what it is sent: no request waits for it, and nothing is lost."""

import asyncio
import os
import signal
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from pydantic import SecretStr

from api import sse
from jobs.queue import CeleryQueue, events_channel
from jobs.settings import Settings
from tafdil.client import Client
from tests.faults.conftest import StartRig
from tests.faults.test_processes import finished
from tests.rig.proxy import Proxy
from tests.rig.stack import Rig, job_spec
from tests.servers import embedded_valkey
from tests.stack import ENOUGH_S, until

# A request that waited for the broker took over a minute; the bound is for a machine that is busy with other work.
ANSWERS_S = 20.0


@contextmanager
def frozen(rig: Rig) -> Generator[None]:
    os.kill(rig.pid("valkey"), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(rig.pid("valkey"), signal.SIGCONT)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].split("/")[0])


def behind_proxy(change: Callable[[Proxy], None]) -> Any:
    @contextmanager
    def broken(rig: Rig) -> Generator[None]:
        port = port_of(rig.environment["TAFDIL_REDIS_URL"])
        proxy = Proxy(port)
        url = rig.environment["TAFDIL_REDIS_URL"].replace(f":{port}/", f":{proxy.port}/")
        rig.kill_process("api")
        rig.service("api").environment = {**rig.environment, "TAFDIL_REDIS_URL": url}
        rig.relaunch("api")
        with Client(rig.url) as client:
            until(client.ready)
        change(proxy)
        try:
            yield
        finally:
            proxy.delay_s, proxy.is_hole = 0.0, False

    return broken


FAULTS = {
    "frozen": frozen,
    "swallows": behind_proxy(lambda proxy: setattr(proxy, "is_hole", True)),
    "slow": behind_proxy(lambda proxy: setattr(proxy, "delay_s", 3.0)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_request_waits_for_the_broker(start_rig: StartRig, fault: str) -> None:
    rig, _ = start_rig(workers=2)
    with Client(rig.url, timeout_s=ANSWERS_S, retries=0) as client:
        # With a connection to the broker that works, and then does not.
        assert finished(rig, client, client.submit(job_spec(3))["id"], 3)
        with FAULTS[fault](rig):
            # More at once than the API has threads.
            with ThreadPoolExecutor(50) as pool:
                submitting = [pool.submit(client.submit, job_spec(3)) for _ in range(45)]
                lists = [pool.submit(lambda: list(client.jobs())) for _ in range(5)]
                jobs = [each.result() for each in submitting]
            assert all(each.result() for each in lists)
            assert {job["state"] for job in jobs} == {"queued"}
            assert client.cancel(jobs[-1]["id"])["state"] in ("cancelled", "running")
            assert len(list(client.jobs())) == 46
            until(lambda: not broker_is_up(client))
            assert client.ready(), "jobs are stored without a broker"
            if fault == "frozen":
                assert {job["waiting_for"] for job in client.jobs() if job["state"] == "queued"} == {"broker"}
        for job in jobs[:6]:
            assert finished(rig, client, job["id"], 3)["attempt"] == 1
        until(lambda: broker_is_up(client))


def broker_is_up(client: Client) -> bool:
    return client._http.get("/readyz").json()["broker"] == "up"


def test_a_call_is_not_repeated_right_after_one_without_an_answer(start_rig: StartRig) -> None:
    rig, _ = start_rig(workers=0)
    queue = CeleryQueue(Settings(redis_url=rig.environment["TAFDIL_REDIS_URL"]))
    assert queue.publish_training("0" * 32)
    with frozen(rig):
        assert not queue.publish_training("0" * 32)
        asked: list[object] = []
        queue._redis.publish = lambda *_: asked.append(1)
        queue.nudge("0" * 32)
        assert asked == []
        assert not queue.is_up()
    assert queue.is_up()
    assert queue.publish_training("0" * 32)
    assert queue.waiting(None) >= 2
    queue.close()


def test_the_wake_up_channel_is_opened_again(start_rig: StartRig) -> None:
    """Bytes that are no text do not end it, and a connection that is closed is opened again."""
    rig, client = start_rig(workers=1)
    channel = events_channel(Settings(redis_url=rig.environment["TAFDIL_REDIS_URL"]))
    with closing(redis.Redis.from_url(rig.environment["TAFDIL_REDIS_URL"])) as broker:

        def is_heard() -> bool:
            return broker.pubsub_numsub(channel)[0][1] == 1

        until(is_heard)
        for garbage in (b"\xff\xfe", b"", b"x" * 10_000):
            broker.publish(channel, garbage)
        broker.client_kill_filter(_type="pubsub")
        until(is_heard)
    assert finished(rig, client, client.submit(job_spec(3))["id"], 3)


def test_a_broker_that_falls_silent_is_listened_to_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connections stay open and it takes new ones, so only a ping shows it. Streams look more often meanwhile."""
    for name, seconds in {"_PING_EVERY_S": 0.05, "_PONG_S": 1.0, "_RETRY_S": 0.05}.items():
        monkeypatch.setattr(sse, name, seconds)

    async def becomes(waker: sse.Waker, is_listening: bool) -> None:
        async with asyncio.timeout(ENOUGH_S):
            while waker.is_listening is not is_listening:
                await asyncio.sleep(0.02)

    async def listen(url: str, proxy: Proxy) -> None:
        settings = Settings(redis_url=SecretStr(f"redis://127.0.0.1:{proxy.port}/0"))
        waker = sse.Waker(settings)
        waker.start()
        await becomes(waker, True)
        proxy.is_hole = True
        await becomes(waker, False)
        proxy.mend()
        await becomes(waker, True)
        news = asyncio.create_task(waker.wait("0" * 32, ENOUGH_S))
        async with redis.asyncio.Redis.from_url(url) as broker:
            while not news.done():
                await broker.publish(events_channel(settings), "0" * 32)
                await asyncio.sleep(0.02)
        assert await news, "wake-ups arrive again"
        await waker.stop()

    with embedded_valkey(tmp_path) as (url, _), closing(Proxy(port_of(url))) as proxy:
        asyncio.run(listen(url, proxy))
