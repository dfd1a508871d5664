"""Kills everything, again and again, and checks that no job noticed: `python -m benchmarks.chaos --kills 60`.

Real API, dispatchers, Celery workers, broker and database; trainings of about two seconds run under the product's own
supervisor. What really happened is appended to a file outside of the database and compared with what the database tells.
The seed is printed; `--seed` draws the same faults in the same order again.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import redis
from sqlalchemy import select

from jobs.records import EventRecord
from tafdil.client import Client
from tafdil.errors import ApiError, TafdilClientError
from tests.rig import history
from tests.rig.invariants import violations
from tests.rig.stack import Rig, job_spec, with_rows
from tests.stack import ENOUGH_S, until

# What is drawn how often. The first seven are SIGKILLs and count as kills.
KILLS = {"training": 46, "supervisor": 22, "worker": 7, "dispatcher": 5, "api": 4, "redis": 5, "fork_server": 8}
# Why a run may start cold where all should be forked: its server was killed, or its worker was leaving.
_EXCUSED = {"lost", "not_ready"}
OTHERS = {"stop": 4, "flushall": 3, "term": 3, "database": 2}
PEOPLE = {"pause": 5, "resume": 6, "cancel": 3, "cancel_saving": 2, "rerun": 1}
IN_FLIGHT = 10


class Chaos:
    """One run on one rig."""

    def __init__(self, rig: Rig, client: Client, seed: int, pause_s: float) -> None:
        self._rig, self._client, self._random, self._pause_s = rig, client, random.Random(seed), pause_s
        self._lease_s = float(rig.environment["TAFDIL_LEASE_S"])
        self.done: Counter[str] = Counter()
        self.jobs: list[str] = []
        self._open: list[str] = []
        self._keys = 0
        self._wake_at: list[tuple[float, list[int]]] = []

    @property
    def kills(self) -> int:
        return sum(self.done[kind] for kind in KILLS)

    def run(self, kills: int) -> None:
        """Faults until so many processes were killed, then peace until every job is over."""
        weights = {**KILLS, **OTHERS, **PEOPLE}
        told = 0
        while self.kills < kills:
            self._keep_busy()
            kind = self._random.choices(list(weights), list(weights.values()))[0]
            place, wait_s = self._random.random(), self._random.uniform(0.3, 1.7) * self._pause_s
            with suppress(psutil.NoSuchProcess, ProcessLookupError, TafdilClientError, redis.RedisError):
                self._cause(kind, place)
            ends_at = time.monotonic() + wait_s
            while time.monotonic() < ends_at:
                self._tend()
                time.sleep(0.05)
            if self.kills >= told + 100:
                told = self.kills
                print(f"{told} kills, {len(self.jobs)} jobs", flush=True)
        self._settle()

    def _tend(self) -> None:
        """Starts again what has ended, and wakes what was stopped long enough."""
        self._rig.watch()
        now = time.monotonic()
        for wake_at, pids in [entry for entry in self._wake_at if entry[0] <= now]:
            self._wake_at.remove((wake_at, pids))
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _keep_busy(self) -> None:
        with suppress(TafdilClientError):
            self._open = [j for j in self._open if self._client.job(j)["state"] not in ("succeeded", "failed", "cancelled")]
            while len(self._open) < IN_FLIGHT:
                behaviour = {"step_s": 0.05, "load_s": 0.1, "save_s": 0.06}
                # Sent again with the same key when the API died in the middle.
                job_id = self._client.submit(job_spec(30, behaviour=behaviour), f"chaos-{self._keys}")["id"]
                self._keys += 1
                self._accepted(job_id)

    def _accepted(self, job_id: str) -> None:
        history.note("accepted", job=job_id)
        self.jobs.append(job_id)
        self._open.append(job_id)

    def _cause(self, kind: str, place: float) -> None:
        getattr(self, f"_{kind}")(place)
        self.done[kind] += 1
        history.note("fault", kind=kind)

    def _pick(self, items: list[Any], place: float) -> Any:
        if not items:
            raise ProcessLookupError
        return items[int(place * len(items))]

    def _trainings(self) -> list[int]:
        return sorted(self._rig.training_pids())

    def _training(self, place: float) -> None:
        os.kill(self._pick(self._trainings(), place), signal.SIGKILL)

    def _supervisor(self, place: float) -> None:
        os.kill(self._rig.supervisor_of(self._pick(self._trainings(), place)), signal.SIGKILL)

    def _fork_server(self, place: float) -> None:
        os.kill(self._pick(self._rig.fork_servers(), place), signal.SIGKILL)

    def _named(self, prefix: str, place: float, number: signal.Signals) -> None:
        names = [service.name for service in self._rig._services if service.name.startswith(prefix)]
        name = self._pick([name for name in names if self._rig.is_up(name)], place)
        os.kill(self._rig.pid(name), number)

    def _worker(self, place: float) -> None:
        self._named("train-worker", place, signal.SIGKILL)

    def _dispatcher(self, place: float) -> None:
        self._named("dispatcher", place, signal.SIGKILL)

    def _api(self, place: float) -> None:
        self._named("api", place, signal.SIGKILL)

    def _redis(self, place: float) -> None:
        self._named("valkey", place, signal.SIGKILL)

    def _term(self, place: float) -> None:
        self._named("train-worker", place, signal.SIGTERM)

    def _stop(self, place: float) -> None:
        """A training with its supervisor, or the supervisor alone, stands still for one and a half leases."""
        training = self._pick(self._trainings(), place)
        supervisor = self._rig.supervisor_of(training)
        pids = [supervisor, training] if place * 100 % 1 < 0.5 else [supervisor]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        if training in pids:
            history.note("sigstop", training=training)
        self._wake_at.append((time.monotonic() + 1.5 * self._lease_s, pids))

    def _flushall(self, place: float) -> None:
        broker = redis.Redis.from_url(self._rig.environment["TAFDIL_REDIS_URL"], socket_timeout=2)
        broker.flushall()
        broker.close()

    def _database(self, place: float) -> None:
        if not self._rig.postgres:
            raise ProcessLookupError
        self._rig.signal_tree("postgres", signal.SIGKILL if place < 0.5 else signal.SIGQUIT)
        process = self._rig.service("postgres").process
        assert process
        process.wait(ENOUGH_S)
        time.sleep(place * 3)
        self._rig.relaunch("postgres")

    def _pause(self, place: float) -> None:
        self._client.pause(self._pick(self._open, place))

    def _resume(self, place: float) -> None:
        for job in self._client.jobs(state="paused"):
            self._client.resume(job["id"])

    def _cancel(self, place: float) -> None:
        self._client.cancel(self._pick(self._open, place))

    def _cancel_saving(self, place: float) -> None:
        self._client.cancel(self._pick(self._open, place), save_checkpoint=True)

    def _rerun(self, place: float) -> None:
        job_id = self._pick(self.jobs, place)
        with suppress(ApiError):
            self._accepted(self._client.rerun(job_id, from_checkpoint=place < 0.5)["id"])

    def _settle(self) -> None:
        """Peace: everything runs again, nobody asks for anything, and every job gets to its end."""
        for _, pids in self._wake_at:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        self._wake_at = []
        ends_at = time.monotonic() + ENOUGH_S + 6 * self._lease_s

        def is_over() -> bool:
            self._tend()
            with suppress(TafdilClientError):
                self._resume(0)
                return not any(job["state"] in ("queued", "running", "paused") for job in self._client.jobs())
            return False

        while time.monotonic() < ends_at and not is_over():
            time.sleep(0.5)


def check(rig: Rig, jobs: list[str]) -> tuple[dict[str, list[str]], Counter[str]]:
    """What is wrong, and how the jobs ended."""
    database = rig.database()
    lines = rig.history()
    with database.transaction() as session:
        from jobs.repository import jobs as table

        found = violations(session, lines)
        states: Counter[str] = Counter()
        for job_id in jobs:
            job = table.get(session, job_id)
            states[job.state if job else "lost"] += 1
            if job and job.state == "failed":
                found["lost"].append(f"{job_id} failed: {(job.error or {}).get('message')}")
    database.dispose()
    return found, states


def starts(rig: Rig) -> Counter[str]:
    """How the runs that came to a first step were started: `warm`, or the reason of a cold start."""
    database = rig.database()
    with database.transaction() as session:
        events = session.scalars(select(EventRecord.data).where(EventRecord.type == "first_step"))
        found = Counter(data.get("reason") or data["start"] for data in events)
    database.dispose()
    return found


def run(options: argparse.Namespace, tell: Callable[[str], None] = print) -> bool:
    settings = {"TAFDIL_MAX_LOSSES": "1000", "TAFDIL_STEP_LIMIT_S": "30"}
    if options.real_lease:
        names = ("LEASE_S", "HEARTBEAT_S", "DISPATCH_S", "REPUBLISH_S", "REQUEST_POLL_S", "DRAIN_GRACE_S")
        values = ("60", "10", "5", "30", "0.5", "60")
        settings |= {f"TAFDIL_{name}": value for name, value in zip(names, values, strict=True)}
    settings["TAFDIL_WARM_START"] = str(options.start == "warm").lower()
    tell(
        f"seed {options.seed}, {options.kills} kills, {options.database}, {options.workers} workers, {options.start} starts"
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tafdil-chaos-", ignore_cleanup_errors=True) as folder:
        rig = Rig(Path(folder), options.workers, 2, options.database, settings)
        os.environ[history.VARIABLE] = str(rig.history_file)
        with rig, Client(rig.url, timeout_s=10) as client:
            with_rows(rig)
            chaos = Chaos(rig, client, options.seed, options.pause_s)
            chaos.run(options.kills)
            until(lambda: rig.watch() or client.ready())
            found, states = check(rig, chaos.jobs)
            started = starts(rig)
            found["not_forked"] = [] if options.start == "cold" else _not_forked(started)
        os.environ.pop(history.VARIABLE)
        if options.keep and any(found.values()):
            rig.history_file.replace(options.keep)
    result = {
        "seed": options.seed,
        "database": options.database,
        "lease_s": chaos._lease_s,
        "kills": chaos.kills,
        "faults": dict(chaos.done),
        "jobs": len(chaos.jobs),
        "ended": dict(states),
        "starts": dict(started),
        "minutes": round((time.monotonic() - began) / 60, 1),
        **{name: len(problems) for name, problems in found.items()},
    }
    tell(json.dumps(result))
    for name, problems in found.items():
        for problem in problems[:20]:
            tell(f"{name}: {problem}")
    return not any(found.values())


def _not_forked(started: Counter[str]) -> list[str]:
    """What is wrong where every run should be forked, but for those whose server was killed just before."""
    wrong = [
        f"{count} runs started cold: {reason}" for reason, count in started.items() if reason not in {"warm", *_EXCUSED}
    ]
    return wrong if started["warm"] > sum(started.values()) / 2 else [*wrong, f"most runs started cold: {dict(started)}"]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="processes to kill")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="postgresql")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--start", choices=["warm", "cold"], default="warm", help="fork each run, or start it from nothing")
    parser.add_argument("--pause-s", type=float, default=0.5, help="mean time between two faults")
    parser.add_argument("--real-lease", action="store_true", help="the product's own lease times, not shortened ones")
    parser.add_argument("--keep", type=Path, help="where to put the history when something is wrong")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(0 if run(parse()) else 1)
