"""The two tenants of the grey rig: one whose requests are measured, and one that holds things and sends too much."""

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.rig import history
from tests.rig.grey import Tenant

ANSWERED_S = 10.0
_LONG = {"step_s": 0.05, "save_s": 0.1}
_SHORT = {"step_s": 0.02}
_MOST_OPEN = 24
_FINAL = ("succeeded", "failed", "cancelled")
_PROMPT = "هل تعرف اسم عاصمة المغرب؟"


@dataclass(frozen=True)
class Asked:
    """One request of the measured tenant. `status` is 0 for a connection that broke, -1 for no answer in time."""

    kind: str
    began_at: float
    ended_at: float
    status: int
    path: str = ""

    @property
    def seconds(self) -> float:
        return self.ended_at - self.began_at


class Measured:
    """The other tenant: submits and reads at a steady rate, one request of each kind at a time, and always has a long run.

    Args:
        pause_s: mean seconds between two requests of a kind.

    Attributes:
        asked: every request.
        jobs: every accepted job.
    """

    def __init__(self, tenant: Tenant, seed: int, pause_s: float) -> None:
        self._tenant, self._pause_s = tenant, pause_s
        self.asked: list[Asked] = []
        self.jobs: list[str] = []
        self._open: dict[str, bool] = {}
        self._seed = seed
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(act, seed + number, share), daemon=True)
            for number, (act, share) in enumerate(((self._submit, 1.0), (self._read, 0.4)))
        ]
        self._number = 0

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def runs(self) -> set[str]:
        return set(self._open)

    def _repeat(self, act: Callable[[httpx.Client, random.Random], None], seed: int, share: float) -> None:
        chance = random.Random(seed)
        with self._tenant.http(ANSWERED_S) as http:
            while not self._ended.wait(chance.uniform(0.5, 1.5) * self._pause_s * share):
                act(http, chance)

    def _submit(self, http: httpx.Client, chance: random.Random) -> None:
        if len(self._open) >= _MOST_OPEN:
            return
        is_long = not any(list(self._open.values()))
        spec = self._tenant.spec(120, _LONG) if is_long else self._tenant.spec(4, _SHORT)
        # The key stays until the job is accepted, so that a request whose answer was lost is the same request.
        headers = {"Idempotency-Key": f"{self._tenant.name}-{self._number}"}
        reply = self._ask("submit", http, "POST", "/v1/jobs", json=spec, headers=headers)
        if reply is None or reply.is_error:
            return
        self._number += 1
        job_id = reply.json()["id"]
        history.note("accepted", job=job_id)
        self.jobs.append(job_id)
        self._open[job_id] = is_long

    def _read(self, http: httpx.Client, chance: random.Random) -> None:
        job_id = chance.choice(list(self._open) or self.jobs or [""])
        paths = [f"/v1/jobs/{job_id}", "/v1/jobs?limit=20", f"/v1/jobs/{job_id}/metrics", f"/v1/jobs/{job_id}/attempts"]
        path = chance.choice(paths) if job_id else paths[1]
        reply = self._ask("read", http, "GET", path)
        if reply is not None and reply.is_success and path == paths[1]:
            over = {job["id"] for job in reply.json()["jobs"] if job["state"] in _FINAL}
            self._open = {known: is_long for known, is_long in list(self._open.items()) if known not in over}

    def _ask(self, kind: str, http: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response | None:
        began_at = time.monotonic()
        reply, status = None, 0
        try:
            reply = http.request(method, path, **options)
            status = reply.status_code
        except httpx.TimeoutException:
            status = -1
        except httpx.TransportError:
            pass
        ended_at = time.monotonic()
        if ended_at - began_at > ANSWERED_S:
            status = -1
        self.asked.append(Asked(kind, began_at, ended_at, status, path))
        return reply


@dataclass
class Noisy:
    """The tenant that holds connections and sends too much. Nothing that it is refused matters.

    Attributes:
        trained: a really trained job of its own, to compare and merge; empty without one.
        sent: how many requests of each kind.
    """

    tenant: Tenant
    link: str
    trained: str = ""
    sent: Counter[str] = field(default_factory=Counter)
    jobs: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)

    def submit(self, http: httpx.Client) -> None:
        reply = http.post("/v1/jobs", json=self.tenant.spec(3, {"step_s": 0.01}))
        if reply.is_success:
            history.note("accepted", job=reply.json()["id"])
            self.jobs.append(reply.json()["id"])

    def upload(self, http: httpx.Client) -> None:
        row = {"prompt": "س" * 200, "chosen": "نعم", "rejected": "لا"}
        http.post("/v1/datasets/check", content=(json.dumps(row, ensure_ascii=False) + "\n").encode() * 400)

    def check(self, http: httpx.Client, wait_s: float = 0) -> None:
        self._task(http.post(f"/v1/jobs/validate?wait_s={wait_s:g}", json=self.tenant.spec(4)))

    def compare(self, http: httpx.Client) -> None:
        self._task(http.post(f"/v1/jobs/{self.trained}/compare?wait_s=0", json={"prompt": _PROMPT, "max_length": 24}))

    def merge(self, http: httpx.Client) -> None:
        self._task(http.post(f"/v1/jobs/{self.trained}/merge?wait_s=0"))

    def poll(self, http: httpx.Client) -> None:
        self.check(http, 3)

    def stream(self, http: httpx.Client) -> None:
        job_id = self.jobs[-1] if self.jobs else ""
        with http.stream("GET", f"/v1/jobs/{job_id}/events") as reply:
            for _ in reply.iter_lines():
                pass

    def _task(self, reply: httpx.Response) -> None:
        if reply.status_code in (200, 202) and "id" in (shown := reply.json()):
            self.tasks.append(shown["id"])

    def once(self, kind: str) -> None:
        """One request, which may fail."""
        with self.tenant.http(5) as http, suppress(httpx.HTTPError, ValueError):
            getattr(self, kind)(http)
            self.sent[kind] += 1

    @contextmanager
    def flood(self, kind: str, threads: int, pause_s: float) -> Generator[None]:
        """Many of one request at a time, until it ends."""
        ended = threading.Event()

        def repeat() -> None:
            with self.tenant.http(5) as http:
                while not ended.is_set():
                    with suppress(httpx.HTTPError, ValueError):
                        getattr(self, kind)(http)
                        self.sent[kind] += 1
                    ended.wait(pause_s)

        running = [threading.Thread(target=repeat, daemon=True) for _ in range(threads)]
        for thread in running:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in running:
                thread.join()

    @contextmanager
    def open(self, what: str, count: int) -> Generator[list[socket.socket]]:
        """Connections over the clients' link that have begun something: a request, an upload, a stream or a long poll."""
        head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {self.tenant.key}\r\n"
        spec = json.dumps(self.tenant.spec(4))
        job_id = self.jobs[-1] if self.jobs else "0" * 32
        asked = {
            "request": f"POST /v1/jobs HTTP/1.1\r\n{head}Content-Type: application/json\r\nContent-Length: 900\r\n\r\n{{",
            "upload": f"POST /v1/datasets HTTP/1.1\r\n{head}Content-Length: 500000\r\n\r\n{{",
            "stream": f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\n{head}\r\n",
            "long poll": f"POST /v1/jobs/validate?wait_s=20 HTTP/1.1\r\n{head}Content-Type: application/json\r\n"
            f"Content-Length: {len(spec.encode())}\r\n\r\n{spec}",
        }[what]
        port = int(self.link.rpartition(":")[2])
        opened: list[socket.socket] = []
        try:
            for _ in range(count):
                with suppress(OSError):
                    connection = socket.create_connection(("127.0.0.1", port), 5)
                    opened.append(connection)
                    connection.sendall(asked.encode())
                    self.sent[what] += 1
            yield opened
        finally:
            for connection in opened:
                connection.close()
