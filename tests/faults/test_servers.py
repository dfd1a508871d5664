"""Redis and the database: restarted, emptied, cut off, away for minutes. Each test breaks servers of its own."""

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import psycopg
import redis

from jobs.queue import CeleryQueue
from jobs.settings import Settings
from tests.faults.conftest import StartRig
from tests.faults.test_processes import finished, the_training
from tests.rig import history
from tests.rig.stack import job_spec, running
from tests.stack import ENOUGH_S, until


def test_redis_restarts(start_rig: StartRig) -> None:
    """Redis dies five times with jobs running and queued: trainings do not notice, queued jobs start, workers come back."""
    rig, client = start_rig(workers=2)
    long = [client.submit(job_spec(400, save_steps=50, behaviour={"step_s": 0.05}))["id"] for _ in range(2)]
    for job_id in long:
        running(client, job_id)
    pids = {the_training(rig, job_id) for job_id in long}
    queued = []
    for _ in range(5):
        rig.kill_process("valkey")
        rig.service("valkey").process.wait()
        reply = client.submit(job_spec(5))
        assert reply["state"] == "queued", "a broker that is down fails no request"
        queued.append(reply["id"])
        time.sleep(0.5)
        rig.relaunch("valkey")
        time.sleep(0.5)
        assert client.ready()
    for job_id in queued + long:
        assert finished(rig, client, job_id, 400 if job_id in long else 5)["attempt"] == 1
    assert pids == {line["pid"] for job_id in long for line in rig.lines(job_id, "start")}


def test_redis_is_emptied(start_rig: StartRig) -> None:
    rig, client = start_rig(workers=2)
    jobs = [client.submit(job_spec(60 if i < 2 else 4, behaviour={"step_s": 0.05}))["id"] for i in range(14)]
    for job_id in jobs[:2]:
        running(client, job_id)
    with closing(redis.Redis.from_url(rig.environment["TAFDIL_REDIS_URL"])) as broker:
        for _ in range(3):
            broker.flushall()
            time.sleep(0.5)
    for i, job_id in enumerate(jobs):
        assert finished(rig, client, job_id, 60 if i < 2 else 4)["attempt"] == 1
        assert len(rig.lines(job_id, "start")) == 1


class DroppingProxy:
    """Stands between a worker and Redis; loses the connection at the very moment when a training's message is delivered."""

    def __init__(self, port: int, drops: int) -> None:
        self._target, self.drops, self.dropped = port, drops, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._copy, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._copy, args=(far, near, True), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, is_reply: bool) -> None:
        try:
            while data := source.recv(2**16):
                if is_reply and b'"tafdil.train"' in data and self.dropped < self.drops:
                    self.dropped += 1
                    break
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


def test_a_message_that_is_lost_on_its_way(start_rig: StartRig) -> None:
    """Redis has popped the message and the worker never gets it: the dispatcher publishes again."""
    rig, client = start_rig(workers=0)
    broker = int(rig.environment["TAFDIL_REDIS_URL"].rpartition(":")[2].split("/")[0])
    proxy = DroppingProxy(broker, drops=2)
    try:
        url = rig.environment["TAFDIL_REDIS_URL"].replace(f":{broker}/", f":{proxy.port}/")
        rig.add_worker("train-worker-9", {"TAFDIL_REDIS_URL": url})
        job_id = client.submit(job_spec(5))["id"]
        assert finished(rig, client, job_id, 5)["attempt"] == 1
        assert proxy.dropped == 2
    finally:
        proxy.close()


def test_one_message_fifty_times(start_rig: StartRig) -> None:
    """Fifty copies of a message for four workers: one training."""
    rig, client = start_rig(workers=4, database="postgresql")
    queue = CeleryQueue(Settings(redis_url=rig.environment["TAFDIL_REDIS_URL"]))
    job_id = client.submit(job_spec(30, behaviour={"step_s": 0.05}))["id"]
    for _ in range(50):
        assert queue.publish_training(job_id)
    queue.close()
    assert finished(rig, client, job_id, 30)["attempt"] == 1
    assert len(rig.lines(job_id, "start")) == 1


def test_forged_messages_do_nothing(start_rig: StartRig) -> None:
    rig, client = start_rig()
    queue = CeleryQueue(Settings(redis_url=rig.environment["TAFDIL_REDIS_URL"]))
    queue._publisher.send_task("os.system", args=["touch /tmp/never"], queue="train")
    queue._publisher.send_task("tafdil.train", args=["0" * 32], kwargs={"more": "x" * 10_000}, queue="train")
    queue._publisher.send_task("tafdil.train", args=[{"not": "an id"}], queue="train")
    queue.close()
    assert finished(rig, client, client.submit(job_spec(3))["id"], 3)["attempt"] == 1
    assert len(list(client.jobs())) == 1


def test_a_database_that_is_away_for_three_leases(start_rig: StartRig) -> None:
    """PostgreSQL is stopped during a training: the same process goes on, and its metrics are stored once, all of them."""
    rig, client = start_rig(workers=2, database="postgresql")
    job_id = client.submit(job_spec(300, save_steps=20, behaviour={"step_s": 0.1}))["id"]
    idle = client.submit(job_spec(5))["id"]
    assert finished(rig, client, idle, 5)
    running(client, job_id, 10)
    training = the_training(rig, job_id)
    os.kill(rig.pid("postgres"), signal.SIGINT)
    rig.service("postgres").process.wait(ENOUGH_S)
    before = rig.lines(job_id, "step")[-1]["step"]
    assert not client.ready()
    time.sleep(3 * 4)
    until(lambda: rig.lines(job_id, "step")[-1]["step"] > before + 50)
    rig.relaunch("postgres")
    job = finished(rig, client, job_id, 300)
    assert job["attempt"] == 1
    assert {line["pid"] for line in rig.lines(job_id, "start")} == {training}
    points = client.metrics(job_id)["loss"]
    assert [(point["attempt"], point["step"]) for point in points] == [(1, step) for step in range(1, 301)]
    events = list(client.events(job_id))
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    told = [event["data"]["step"] for event in events if event["event"] == "metrics"]
    assert told == list(range(1, 301)), "each was told once"


def test_a_database_that_crashes_again_and_again(start_rig: StartRig) -> None:
    """PostgreSQL is killed outright five times, also at the very end of a training."""
    rig, client = start_rig(workers=2, database="postgresql")
    jobs = [client.submit(job_spec(60, behaviour={"step_s": 0.1}))["id"] for _ in range(4)]
    running(client, jobs[0])
    for _ in range(5):
        time.sleep(1.5)
        rig.signal_tree("postgres", signal.SIGKILL)
        rig.relaunch("postgres")
    for job_id in jobs:
        assert finished(rig, client, job_id, 60)["attempt"] == 1
        assert [point["step"] for point in client.metrics(job_id)["loss"]] == list(range(1, 61))


def test_a_database_that_hangs(start_rig: StartRig) -> None:
    """PostgreSQL stands still without closing a connection: the training and its watch go on."""
    rig, client = start_rig(database="postgresql")
    job_id = client.submit(job_spec(200, save_steps=20, behaviour={"step_s": 0.05}))["id"]
    running(client, job_id, 10)
    training = the_training(rig, job_id)
    rig.signal_tree("postgres", signal.SIGSTOP)
    try:
        time.sleep(5)
        until(lambda: len(rig.lines(job_id, "step")) > 60)
    finally:
        rig.signal_tree("postgres", signal.SIGCONT)
    assert finished(rig, client, job_id, 200)["attempt"] == 1
    assert {line["pid"] for line in rig.lines(job_id, "start")} == {training}


def test_many_clients_send_one_request(start_rig: StartRig) -> None:
    """A client that times out sends again: twenty at once with one key make one job."""
    rig, client = start_rig(database="postgresql")
    with ThreadPoolExecutor(20) as pool:
        replies: list[dict[str, Any]] = list(pool.map(lambda _: client.submit(job_spec(3), "once"), range(20)))
    assert len({reply["id"] for reply in replies}) == 1
    assert len(list(client.jobs())) == 1
    finished(rig, client, replies[0]["id"], 3)
    with psycopg.connect(rig.postgres.url) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
    assert not history.overlaps(rig.history())
