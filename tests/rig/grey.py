"""A rig for grey faults: every link between two parts runs through a proxy, every disk is small, and two tenants use it."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from tafdil.local_stack import Service
from tests.rig import grey_points
from tests.rig.proxy import Proxy
from tests.rig.stack import ROWS, Rig
from tests.stack import ENOUGH_S, until

MIB = 2**20
TASK_WORKERS = ("checks-worker", "exports-worker")
_DISKS = {"data": 96 * MIB, "data/datasets": 24 * MIB, "data/runs": 64 * MIB}
_POSTGRES_BYTES = 384 * MIB
_MEMORY_ROOT = Path("/sys/fs/cgroup/memory")
# Allocates memory in small pieces up to a limit, and holds it until it is killed.
_HOG = """
import os, sys, time
held = []
while True:
    if len(held) < int(sys.argv[1]):
        held.append(bytearray(os.urandom(2**10) * 2**10))
    time.sleep(0.005)
"""


class GreyRig(Rig):
    """A service whose parts can be slowed down, cut off, starved and frozen one by one.

    Args:
        folder: data, logs and servers; each of its disks is a small file system of its own where that may be mounted.
        workers: train workers.
        database: as of `Rig`.
        answers: whether checks, comparisons and exports are answered too.

    Attributes:
        links: the proxies, by service and server ("api", "broker").
        has_disks: whether the disks are small.
        admin_key: the key that makes keys.
    """

    def __init__(self, folder: Path, workers: int, database: str, *, answers: bool) -> None:
        settings = {
            "TAFDIL_MAX_LOSSES": "1000",
            "TAFDIL_STEP_LIMIT_S": "60",
            "TAFDIL_MEMORY_PAUSE_S": "1",
            "TAFDIL_BODY_TIMEOUT_S": "5",
            "TAFDIL_READ_TIMEOUT_S": "10",
        }
        super().__init__(folder, workers, 1, database, settings, generation=answers, also=TASK_WORKERS if answers else ())
        self.links: dict[tuple[str, str], Proxy] = {}
        self.admin_key = secrets.token_urlsafe(32)
        self.orders_file = folder / "orders.json"
        self.has_disks = False
        self._given: dict[str, dict[str, Any]] = {}
        self._mounts = ExitStack()

    # -- parts

    def _plan(self) -> list[Service]:
        planned = super()._plan()
        for service in planned:
            if service.name not in ("valkey", "postgres"):
                service.environment = self._behind_proxies(service.name, service.environment)
        api = next(service for service in planned if service.name == "api")
        api.environment["TAFDIL_ADMIN_KEY"] = self.admin_key
        return planned

    def _behind_proxies(self, name: str, environment: dict[str, str]) -> dict[str, str]:
        """A service's variables: its own way to each server, and its role."""
        changed = {**environment, grey_points.ORDERS: str(self.orders_file), grey_points.ROLE: name}
        servers = {"TAFDIL_REDIS_URL": "broker", **({"TAFDIL_DATABASE_URL": "database"} if self.postgres else {})}
        for variable, server in servers.items():
            port = int(environment[variable].rpartition(":")[2].split("/")[0])
            proxy = self.links.setdefault((name, server), Proxy(port))
            changed[variable] = environment[variable].replace(f":{port}/", f":{proxy.port}/")
        return changed

    def _trains(self, service: Service) -> bool:
        return super()._trains(service) or service.name in TASK_WORKERS

    def start(self) -> None:
        try:
            self.has_disks = self._mount_disks()
            super().start()
        except BaseException:
            self._mounts.close()
            raise
        self.links["client", "api"] = Proxy(self.port)

    def stop(self) -> None:
        for proxy in self.links.values():
            proxy.mend()
        super().stop()
        for proxy in self.links.values():
            proxy.close()
        self._mounts.close()

    def _mount_disks(self) -> bool:
        sizes = {**_DISKS, **({"postgres": _POSTGRES_BYTES} if self.postgres else {})}
        for name, size in sizes.items():
            place = self.folder / name
            place.mkdir(parents=True, exist_ok=True)
            options = ["-t", "tmpfs", "-o", f"size={size},mode=0700"]
            if subprocess.run(["mount", *options, "none", str(place)], capture_output=True, check=False).returncode:
                self._mounts.close()
                return False
            self._mounts.callback(subprocess.run, ["umount", "-l", str(place)], check=False)
        return True

    def names(self, prefix: str) -> list[str]:
        """Services that run, by the beginning of their names."""
        return [each.name for each in self._services if each.name.startswith(prefix) and self.is_up(each.name)]

    def tree(self, name: str) -> list[int]:
        """The processes of a service, its main one first."""
        root = psutil.Process(self.pid(name))
        return [root.pid, *(child.pid for child in root.children(recursive=True))]

    def worker_of(self, run: int) -> str:
        """The train worker below which a run is. Raises `ProcessLookupError`."""
        for name in self.names("train-worker"):
            if run in self.tree(name):
                return name
        raise ProcessLookupError

    # -- what holds them up

    def order(self, kind: str, values: dict[str, Any]) -> None:
        """Gives the processes of some roles an order, and takes it back with an empty one."""
        self._given[kind] = values
        grey_points.give(self.orders_file, self._given)

    @contextmanager
    def full_disk(self, name: str) -> Generator[None]:
        """Leaves no room below a directory of the rig that is a file system of its own."""
        blocker = self.folder / name / ".blocker"
        with blocker.open("wb") as file:
            with suppress(OSError):
                while True:
                    file.write(bytes(MIB))
                    file.flush()
            with suppress(OSError):
                while True:
                    os.write(file.fileno(), bytes(512))
        try:
            yield
        finally:
            blocker.unlink(missing_ok=True)

    @contextmanager
    def little_memory(self, pids: Sequence[int], limit_bytes: int) -> Generator[None]:
        """Puts processes into a control group that a hog fills. Without such groups the hog only takes as much."""
        group = _MEMORY_ROOT / f"tafdil-grey-{os.getpid()}-{secrets.token_hex(4)}"
        has_group = _make_group(group, limit_bytes)
        hog = subprocess.Popen([sys.executable, "-c", _HOG, str(limit_bytes // MIB)])
        try:
            if has_group:
                for pid in [*pids, hog.pid]:
                    with suppress(OSError):
                        (group / "cgroup.procs").write_text(str(pid))
            yield
        finally:
            hog.kill()
            hog.wait()
            if has_group:
                _leave_group(group)

    # -- tenants

    def tenant(self, name: str, url: str | None = None) -> "Tenant":
        headers = {"Authorization": f"Bearer {self.admin_key}"}
        reply = httpx.post(f"{self.url}/v1/keys", json={"tenant": name, "scopes": ["write"]}, headers=headers, timeout=60)
        reply.raise_for_status()
        return Tenant(name, url or self.url, reply.json()["key"])

    def really_trained(self, tenant: "Tenant") -> str:
        """A job of one step that a train worker of its own has trained with the product's own training."""
        worker = self.service("train-worker-1")
        command = [{"tests.rig.tasks": "worker.tasks"}.get(part, part) for part in worker.command]
        command = [part.replace("train-worker-1@", "real-worker@") for part in command]
        real = Service("real-worker", command, environment={**worker.environment, "TAFDIL_GPU_CLASS": "real"})
        self._services.append(real)
        self._launch(real)
        with tenant.http(60) as http:
            spec = tenant.spec(1, None, name="real", gpu_class="real", save_steps=1)
            job_id: str = http.post("/v1/jobs", json=spec).raise_for_status().json()["id"]
            path = f"/v1/jobs/{job_id}"
            until(lambda: http.get(path).json()["state"] in ("succeeded", "failed"))
            assert http.get(path).json()["state"] == "succeeded", http.get(path).json()["error"]
        self._services.remove(real)
        assert real.process
        os.kill(real.process.pid, signal.SIGTERM)
        real.process.wait(ENOUGH_S)
        return job_id


class Tenant:
    """A key, and a dataset of its own.

    Attributes:
        dataset_id: rows for its jobs.
    """

    def __init__(self, name: str, url: str, key: str) -> None:
        self.name, self.url, self.key = name, url, key
        with self.http(60) as http:
            self.dataset_id: str = http.post("/v1/datasets", content=ROWS.encode()).raise_for_status().json()["id"]

    def http(self, timeout_s: float, url: str | None = None) -> httpx.Client:
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=url or self.url, headers=headers, timeout=timeout_s, limits=limits)

    def spec(self, steps: int, behaviour: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        return {
            "method": "ipo",
            "name": json.dumps(behaviour or {}),
            "model_name": "tafdil/tiny-arabic-qwen-2",
            "dataset_id": self.dataset_id,
            "max_steps": steps,
            "save_steps": 5,
            **fields,
        }


def _make_group(group: Path, limit_bytes: int) -> bool:
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError:
        with suppress(OSError):
            group.rmdir()
        return False
    return True


def _leave_group(group: Path) -> None:
    """Moves what still runs out of a group, and removes it."""
    home = Path("/proc/self/cgroup").read_text(encoding="ascii").split(":memory:")[-1].split("\n")[0]
    ends_at = time.monotonic() + 10
    while time.monotonic() < ends_at:
        for pid in (group / "cgroup.procs").read_text(encoding="ascii").split():
            with suppress(OSError):
                (_MEMORY_ROOT / home.lstrip("/") / "cgroup.procs").write_text(pid)
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)


def signalled(pids: Sequence[int], number: signal.Signals) -> list[int]:
    """Signals processes, and returns those that were there."""
    found = []
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            found.append(pid)
    return found
