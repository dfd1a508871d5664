"""The broker is not believed, and nothing but the API is reached from outside."""

import base64
import json
import os
import pickle
import uuid
import zlib
from collections.abc import Callable, Generator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import redis
import yaml
from celery import Celery
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import text

from jobs.broker import plain
from jobs.queue import COMPARE_TASK, TRAIN_QUEUE, TRAIN_TASK, make_celery
from jobs.settings import Settings
from tafdil.client import Client
from tests.faults.conftest import open_rig
from tests.faults.test_processes import finished
from tests.rig.stack import Rig, job_spec, running
from tests.stack import until

ANY_ID = "0" * 32
KEY = f"tafdil:{TRAIN_QUEUE}"
ROOT = Path(__file__).resolve().parents[2]


class Touch:
    """Unpickled, it makes the canary."""

    def __init__(self, canary: Path) -> None:
        self._canary = str(canary)

    def __reduce__(self) -> Any:
        return os.mknod, (self._canary,)


class Forger:
    """Who has the broker's password and no other."""

    def __init__(self, rig: Rig, canary: Path) -> None:
        url = rig.environment["TAFDIL_REDIS_URL"]
        self.app: Celery = make_celery(Settings(redis_url=SecretStr(url)))
        self.broker = redis.Redis.from_url(url)
        self.canary = canary

    def task(self, name: str, *args: Any, **options: Any) -> None:
        self.app.send_task(name, args=args, **{"queue": TRAIN_QUEUE, **options})

    def raw(self, message: bytes) -> None:
        self.broker.lpush(KEY, message)

    def put_first(self) -> None:
        """The message that was sent last is the next to be taken."""
        self.broker.rpush(KEY, self.broker.lpop(KEY) or b"")

    def body(self, content: bytes, kind: str, encoding: str = "binary", **headers: Any) -> None:
        """A message as Celery writes it, with a body of another kind."""
        known = {"id": uuid.uuid4().hex, "task": TRAIN_TASK, "lang": "py", "argsrepr": "", "kwargsrepr": ""}
        properties = {
            "delivery_mode": 2,
            "delivery_tag": uuid.uuid4().hex,
            "delivery_info": {"exchange": "", "routing_key": TRAIN_QUEUE},
            "body_encoding": "base64",
        }
        message = {
            "body": base64.b64encode(content).decode(),
            "content-type": kind,
            "content-encoding": encoding,
            "headers": {**known, **headers},
            "properties": properties,
        }
        self.raw(json.dumps(message).encode())


def good(job_id: str) -> bytes:
    return json.dumps([[job_id], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()


FORGED: dict[str, Callable[[Forger], None]] = {
    "an unknown task": lambda f: f.task("os.system", f"touch {f.canary}"),
    "another worker's task": lambda f: f.task(COMPARE_TASK, "0" * 32),
    "a task of Celery": lambda f: f.task("celery.backend_cleanup"),
    "a task that calls others": lambda f: f.task("celery.map", {"task": TRAIN_TASK, "args": []}, ["x"] * 3),
    "a chord": lambda f: f.task("celery.chord_unlock", "x", {"task": TRAIN_TASK}),
    "a foreign id": lambda f: f.task(TRAIN_TASK, ANY_ID),
    "a command": lambda f: f.app.control.broadcast("shutdown"),
    "an end of the pool": lambda f: f.app.control.broadcast("pool_shrink", arguments={"n": 1}),
    "no arguments": lambda f: f.task(TRAIN_TASK),
    "too many arguments": lambda f: f.task(TRAIN_TASK, *range(100)),
    "unknown keywords": lambda f: f.task(TRAIN_TASK, kwargs={"job_id": "x", "worker": "evil", "trainer": ["sh"]}),
    "huge keywords": lambda f: f.task(TRAIN_TASK, kwargs={"job_id": "x" * 20_000_000}),
    "no text": lambda f: f.task(TRAIN_TASK, {"a": [1, {"b": None}]}),
    "SQL": lambda f: f.task(TRAIN_TASK, "'; DROP TABLE jobs; --"),
    "lines for the log": lambda f: f.task(TRAIN_TASK, "x\n2026-01-01 00:00:00 CRITICAL root: canary-line"),
    "in a hundred years": lambda f: f.task(TRAIN_TASK, ANY_ID, eta=datetime(2125, 1, 1, tzinfo=UTC)),
    "a limit on the time": lambda f: f.task(TRAIN_TASK, ANY_ID, time_limit=1, soft_time_limit=1),
    "a pickle": lambda f: f.body(pickle.dumps(Touch(f.canary)), "application/x-python-serialize"),
    "a pickle said to be JSON": lambda f: f.body(pickle.dumps(Touch(f.canary)), "application/json", "utf-8"),
    "YAML": lambda f: f.body(f"!!python/object/apply:os.mknod ['{f.canary}']".encode(), "application/x-yaml", "utf-8"),
    "no content type": lambda f: f.body(good("x"), ""),
    "no JSON": lambda f: f.body(b"{", "application/json", "utf-8"),
    "another shape": lambda f: f.body(b'{"a": 1}', "application/json", "utf-8"),
    "a follower": lambda f: f.task(TRAIN_TASK, ANY_ID, link=f.app.signature("os.system", args=("x",))),
    "no body": lambda f: f.raw(b'{"headers": {"task": "tafdil.train"}, "content-type": "application/json"}'),
    "no object": lambda f: f.raw(b"[]"),
    "a number": lambda f: f.raw(b"7"),
    "nothing": lambda f: f.raw(b""),
    "noise": lambda f: f.raw(bytes(range(256))),
    "a deep list": lambda f: f.raw(b"[" * 100_000),
    "what kombu makes an object of": lambda f: f.raw(b'{"__type__": "datetime", "__value__": "x"}'),
    "a bomb": lambda f: f.body(
        zlib.compress(good("0" * 32) + b" " * 2**28), "application/json", compression="application/x-gzip"
    ),
    "no headers": lambda f: f.body(good("x"), "application/json", "utf-8", task=None, id=None),
}


@pytest.fixture(scope="module")
def running_rig(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Rig, Client]]:
    with ExitStack() as stack:
        yield open_rig(stack, tmp_path_factory.mktemp("rig"), generation=True)


def rows(rig: Rig) -> list[str]:
    database = rig.database()
    try:
        with database.reading() as session:
            tables = ("jobs", "attempts", "tasks", "job_events")
            return [str(row) for table in tables for row in session.execute(text(f"SELECT * FROM {table}"))]  # noqa: S608
    finally:
        database.dispose()


def test_forged_messages_change_nothing_and_stop_nobody(running_rig: tuple[Rig, Client], tmp_path: Path) -> None:
    rig, client = running_rig
    forger = Forger(rig, tmp_path / "canary")
    done = client.submit(job_spec(2))["id"]
    finished(rig, client, done, 2)
    before, worker = rows(rig), rig.pid("train-worker-1")
    for forge in FORGED.values():
        forge(forger)
    forger.task(TRAIN_TASK, done)
    until(lambda: forger.broker.llen(KEY) == 0)
    assert rows(rig) == before
    job = client.submit(job_spec(60, behaviour={"step_s": 0.05}))["id"]
    running(client, job)
    for forge in FORGED.values():
        forge(forger)
    assert finished(rig, client, job, 60)["attempt"] == 1
    assert (rig.pid("train-worker-1"), rig.is_up("train-worker-1")) == (worker, True)
    assert not forger.canary.exists()
    log = (rig.data_dir / "logs" / "train-worker-1.log").read_text(encoding="utf-8", errors="replace")
    assert not [line for line in log.splitlines() if line.startswith("2026-01-01") or len(line) > 100_000]


def test_a_forged_message_wakes_a_worker_and_sets_it_no_limit(running_rig: tuple[Rig, Client], tmp_path: Path) -> None:
    """It is taken before the job's own: the job begins by it, and is trained as any other."""
    rig, client = running_rig
    forger = Forger(rig, tmp_path / "canary")
    first = client.submit(job_spec(20, behaviour={"step_s": 0.05}))["id"]
    running(client, first)
    second = client.submit(job_spec(40, behaviour={"step_s": 0.05}))["id"]
    forger.task(TRAIN_TASK, ANY_ID, time_limit=1, soft_time_limit=1)
    forger.put_first()
    for job in (first, second):
        assert finished(rig, client, job, client.job(job)["spec"]["max_steps"])["attempt"] == 1


def test_a_message_of_ours_is_taken_and_nothing_else_of_it() -> None:
    app = make_celery(Settings(redis_url=SecretStr("memory://")))
    app.conf.broker_transport = None
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        app.send_task(TRAIN_TASK, args=[ANY_ID], queue=TRAIN_QUEUE, connection=connection, time_limit=1)
        message: Any = channel._get(TRAIN_QUEUE)
    assert message["headers"]["timelimit"] == [1, None]
    known = plain(message, TRAIN_QUEUE)
    assert known is not None
    assert (known["headers"]["task"], known["headers"]["argsrepr"]) == (TRAIN_TASK, ANY_ID)
    assert set(known["headers"]) == {"lang", "task", "id", "argsrepr", "kwargsrepr", "ignore_result"}
    assert json.loads(base64.b64decode(known["body"]))[:2] == [[ANY_ID], {}]
    assert plain({**message, "content-type": "application/x-python-serialize"}, TRAIN_QUEUE) is None


def _client(port: int | None, password: str | None) -> redis.Redis:
    """A client that takes no for an answer."""
    return redis.Redis(port=port or 0, password=password, retry=Retry(NoBackoff(), 0))


def test_only_the_api_and_the_broker_listen_and_on_this_host_alone(running_rig: tuple[Rig, Client]) -> None:
    rig, client = running_rig
    assert client.ready()
    ports: dict[str, set[tuple[str, int]]] = {}
    for service in rig._services:
        assert service.process
        root = psutil.Process(service.process.pid)
        for process in [root, *root.children(recursive=True)]:
            for found in process.net_connections("inet"):
                if found.status == psutil.CONN_LISTEN:
                    ports.setdefault(service.name, set()).add((found.laddr.ip, found.laddr.port))
    broker = urlsplit(rig.environment["TAFDIL_REDIS_URL"])
    assert ports == {"api": {("127.0.0.1", rig.port)}, "valkey": {("127.0.0.1", broker.port)}}
    for password in (None, "wrong"):
        with pytest.raises(redis.AuthenticationError), _client(broker.port, password) as anybody:
            anybody.ping()
    app = make_celery(Settings(redis_url=SecretStr(rig.environment["TAFDIL_REDIS_URL"])))
    assert app.control.ping(timeout=1) == [], "workers take no commands"


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.watch.yml"])
def test_containers_are_published_on_this_host_alone(name: str) -> None:
    """Of the service the API alone is, which `test_only_the_api_is_published` holds; Grafana where it is asked for."""
    services = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"grafana" if "watch" in name else "api"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    for service in services.values():
        assert not {"network_mode", "privileged", "pid", "ipc", "cap_add", "devices"} & set(service)
        assert "docker.sock" not in str(service.get("volumes"))
        assert "flower" not in f"{service.get('image')} {service.get('command')}"
