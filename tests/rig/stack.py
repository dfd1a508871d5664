"""The rig: every process of the service, as many workers as wanted, and servers of its own that may be broken."""

import atexit
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from jobs.database import Database
from tafdil.client import Client
from tafdil.local_stack import Service
from tests.rig import history
from tests.stack import ENOUGH_S, StackUnderTest, until

FAST = {
    "TAFDIL_LEASE_S": "4",
    "TAFDIL_HEARTBEAT_S": "1",
    "TAFDIL_DISPATCH_S": "0.5",
    "TAFDIL_REPUBLISH_S": "3",
    "TAFDIL_REQUEST_POLL_S": "0.2",
    "TAFDIL_DRAIN_GRACE_S": "15",
    "TAFDIL_STEP_LIMIT_S": "60",
    "TAFDIL_QUIET_LIMIT_S": "60",
}
ROWS = '{"prompt": "س", "chosen": "نعم", "rejected": "لا"}\n' * 4


class Rig(StackUnderTest):
    """A service whose trainings take seconds.

    Args:
        folder: data, logs and servers.
        workers: train workers.
        database: "sqlite", or "postgresql" for a server of its own, made with `initdb`.
        settings: variables of all processes, on top of `FAST`.
        each: variables of one worker or dispatcher, by its name ("train-worker-2").
        generation: whether comparisons are answered too.
        also: more services of the local stack to start.
        forks: as of `StackUnderTest`.
    """

    def __init__(
        self,
        folder: Path,
        workers: int = 1,
        dispatchers: int = 1,
        database: str = "sqlite",
        settings: dict[str, str] | None = None,
        each: dict[str, dict[str, str]] | None = None,
        generation: bool = False,
        forks: bool = True,
        also: Sequence[str] = (),
    ) -> None:
        super().__init__(folder / "data", forks=forks)
        self._also = [*(["generation-worker"] if generation else []), *also]
        self.folder, self._workers, self._dispatchers = folder, workers, dispatchers
        self._settings, self._each = {**FAST, **(settings or {})}, each or {}
        self.history_file = folder / "history.jsonl"
        self._address = self._settings.pop("TAFDIL_TEST_ADDRESS", None)
        self.postgres = OwnPostgres(folder / "postgres") if database == "postgresql" else None
        self.environment: dict[str, str] = {}
        self._worker_command: list[str] = []

    def _plan(self) -> list[Service]:
        services = {service.name: service for service in super()._plan()}
        api, dispatcher, worker = services["api"], services["dispatcher"], services["train-worker"]
        self.environment = {
            **api.environment,
            **self._settings,
            history.VARIABLE: str(self.history_file),
            "PYTHONPATH": f"{Path(__file__).resolve().parent / 'site'}:{Path(__file__).resolve().parents[2]}",
        }
        if self.postgres:
            self.environment["TAFDIL_DATABASE_URL"] = self.postgres.url
        planned = [services["valkey"]]
        if self.postgres:
            planned.append(self.postgres.service())
        planned.append(Service("api", api.command, environment=self.environment))
        for number in range(1, self._dispatchers + 1):
            planned.append(self._copy(dispatcher, f"dispatcher-{number}"))
        for number in range(1, self._workers + 1):
            planned.append(self._copy(worker, f"train-worker-{number}"))
        self._worker_command = self._copy(worker, "train-worker-1").command
        planned += [self._copy(services[name], name) for name in self._also]
        return planned

    def _copy(self, service: Service, name: str) -> Service:
        renamed = {"worker.tasks": "tests.rig.tasks", "train@%h": f"{name}@%h"}
        command = [renamed.get(part, part) for part in service.command]
        return Service(name, command, environment={**self.environment, **self._each.get(name, {})})

    def start(self) -> None:
        if self.postgres:
            self.postgres.prepare(self._address)
        super().start()

    def _valkey(self, port: int, password: str) -> list[str]:
        program, config = super()._valkey(port, password)
        if self._address:
            text = Path(config).read_text(encoding="utf-8")
            Path(config).write_text(text.replace("bind 127.0.0.1", f"bind 127.0.0.1 {self._address}"), encoding="utf-8")
        return [program, config]

    def _launch(self, service: Service) -> None:
        super()._launch(service)
        if service.name == "postgres":
            assert self.postgres
            until(self.postgres.answers)

    # -- handles

    def service(self, name: str) -> Service:
        return next(service for service in self._services if service.name == name)

    def is_up(self, name: str) -> bool:
        process = self.service(name).process
        return process is not None and process.poll() is None

    def relaunch(self, name: str) -> None:
        """Starts a service again that has ended."""
        service = self.service(name)
        assert service.process
        service.process.wait(ENOUGH_S)
        service.restart_at = 0.0
        self._launch(service)

    def add_worker(self, name: str, environment: dict[str, str], within: Sequence[str] = ()) -> None:
        """Starts one more train worker, with variables of its own, by a command that runs commands elsewhere."""
        command = [*within, *(part.replace("train-worker-1@%h", f"{name}@%h") for part in self._worker_command)]
        service = Service(name, command, environment={**self.environment, **environment})
        self._services.append(service)
        self._launch(service)

    def seen_from(self, address: str) -> dict[str, str]:
        """The servers' URLs as another host sees them, at an address of this one."""
        names = ("TAFDIL_REDIS_URL", "TAFDIL_DATABASE_URL")
        return {name: self.environment[name].replace("@127.0.0.1:", f"@{address}:") for name in names}

    def signal_tree(self, name: str, number: signal.Signals) -> None:
        """Signals every process below a service, one by one: PostgreSQL's have groups of their own."""
        root = psutil.Process(self.pid(name))
        for process in [root, *root.children(recursive=True)]:
            os.kill(process.pid, number)

    def kill_group(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signals every process of a service."""
        os.killpg(self.pid(name), number)

    def stand_still(self, *pids: int) -> None:
        """Stops processes, but none in the middle of a write to SQLite: it would keep every other from writing.

        See "What is not promised" in docs/reliability.md; PostgreSQL ends such a transaction by itself.
        """
        while True:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            if self.postgres or self._may_write():
                return
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def _may_write(self) -> bool:
        """Whether SQLite's write lock is free within a second."""
        with closing(sqlite3.connect(self.data_dir / "tafdil.sqlite3", timeout=1, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            return True

    def pool_children(self, name: str) -> list[int]:
        """The supervisors below a worker's main process: Celery's pool children."""
        try:
            return [child.pid for child in psutil.Process(self.pid(name)).children()]
        except psutil.NoSuchProcess:
            return []

    def training_pids(self) -> list[int]:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if "tests.rig.trainer" in command and any(str(self.data_dir) in part for part in command):
                found.append(process.pid)
        return found

    def fork_servers(self) -> list[int]:
        """The processes that trainings are forked from."""
        names = [
            service.name
            for service in self._services
            if service.name.startswith("train-worker") and self.is_up(service.name)
        ]
        below = (psutil.Process(supervisor).children() for name in names for supervisor in self.pool_children(name))
        return sorted(child.pid for children in below for child in children if "worker.fork_server" in child.cmdline())

    def supervisor_of(self, training: int) -> int:
        return psutil.Process(training).ppid()

    def database(self) -> Database:
        """The rig's database, for looking behind the API."""
        return Database(self.postgres.url if self.postgres else f"sqlite:///{self.data_dir / 'tafdil.sqlite3'}")

    def history(self) -> list[dict[str, Any]]:
        return history.read(self.history_file)

    def lines(self, job_id: str, what: str) -> list[dict[str, Any]]:
        """What a job's trainings noted of one kind."""
        return [line for line in self.history() if line.get("job") == job_id and line["what"] == what]


class OwnPostgres:
    """A PostgreSQL server made for one test. As root it runs as the user `postgres`, which it insists on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.addresses = "127.0.0.1"
        self.port = _free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def prepare(self, address: str | None = None) -> None:
        """Makes the server's files; it will listen on this host, and on one more address if one is given."""
        self.addresses = f"127.0.0.1,{address}" if address else "127.0.0.1"
        if (self.folder / "PG_VERSION").exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
            for parent in self.folder.parents:
                if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
                    parent.chmod(parent.stat().st_mode | 0o055)
        # `-a` keeps owners and modes.
        subprocess.run(["cp", "-a", f"{_new_cluster()}/.", str(self.folder)], check=True)
        if address:
            with (self.folder / "pg_hba.conf").open("a") as file:
                file.write("host all all samenet trust\n")

    def service(self) -> Service:
        options = ["-p", str(self.port), "-k", str(self.folder), "-c", f"listen_addresses={self.addresses}"]
        quick = ["-c", "shared_buffers=16MB", "-c", "max_connections=100", "-c", "synchronous_commit=on"]
        command = [str(find_postgres("postgres")), "-D", str(self.folder), *options, *quick]
        return Service("postgres", [*_as_postgres(), *command])

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@cache
def _new_cluster() -> Path:
    """The files of a new server, which servers are copied from: `initdb` takes seconds."""
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    if os.getuid() == 0:
        shutil.chown(folder.name, "postgres", "postgres")
    command = [str(find_postgres("initdb")), "-D", folder.name, "-U", "postgres", "-A", "trust", "-N"]
    subprocess.run([*_as_postgres(), *command], check=True, capture_output=True)
    return Path(folder.name)


def _as_postgres() -> list[str]:
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []


def find_postgres(program: str) -> Path | None:
    """A program of a PostgreSQL server's installation."""
    found = shutil.which(program)
    places = [Path(found)] if found else sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return places[-1] if places else None


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def job_spec(steps: int = 20, save_steps: int = 5, behaviour: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A job for the rig."""
    import json

    return {
        "method": "ipo",
        "name": json.dumps(behaviour or {}),
        "model_name": "tafdil/tiny-arabic-qwen-2",
        "dataset_path": "rows.jsonl",
        "max_steps": steps,
        "save_steps": save_steps,
        **fields,
    }


def with_rows(rig: Rig) -> None:
    (rig.data_dir / "rows.jsonl").write_text(ROWS, encoding="utf-8")


def running(client: Client, job_id: str, step: int = 1) -> dict[str, Any]:
    """The job once an attempt of it has done some steps."""

    def look() -> dict[str, Any] | None:
        job = client.job(job_id)
        assert job["state"] in ("queued", "running", "paused"), job
        return job if job["state"] == "running" and job["step"] >= step else None

    return until(look)
