"""Do reads stay as fast when the tables are full? `python -m benchmarks.read_latency --database sqlite`.

The API runs as a process of its own, first on a database with the asked-for jobs alone, then on one with a million jobs,
their attempts and events, and ten million metric points beside them. Requests come one after the other over loopback; the
table shows the median and the 99th percentile of each, and what the full tables cost.
"""

import argparse
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
from sqlalchemy import insert, text

from jobs.database import Database
from jobs.records import AttemptRecord, EventRecord, JobRecord, MetricRecord
from jobs.states import Cause
from tests.integration.test_repository import FIELDS
from tests.servers import postgres_schema
from trainer_core.config import HEADLINE

QUEUED = 1000
CURVE_POINTS = 10_000
CURVES = 10
# Copies the first job, its attempt and its events under other numbers.
_NUMBERS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last}) ",
    "postgresql": "WITH n(i) AS (SELECT generate_series({first}, {last})) ",
}
_HEX = {"sqlite": "printf('%032x', n.i)", "postgresql": "lpad(to_hex(n.i), 32, '0')"}


def fill(database: Database, jobs: int, metric_points: int) -> None:
    """The jobs that are asked for, then so many others, one in a thousand of them queued, and points of theirs."""
    states = ["succeeded", "failed", "cancelled", "running", "queued"]
    now = time.time()
    common = {**FIELDS, "warnings": [], "event_count": 3, "created_at": now, "published_at": now, "attempt": 1}
    with database.transaction() as session:
        for number in range(200):
            state = states[number % len(states)]
            job_id = f"{number:032x}"
            started = {"started_at": now - 100} if state != "queued" else {}
            session.execute(
                insert(JobRecord).values(
                    {**common, **started, "id": job_id, "state": state, "method": HEADLINE[number % len(HEADLINE)]}
                )
            )
            events = [
                {"job_id": job_id, "sequence": i + 1, "type": "queued", "data": {}, "created_at": now} for i in range(3)
            ]
            session.execute(insert(EventRecord), events)
            attempt = {"worker": "w", "started_at": now - 100, "ended_at": now, "outcome": Cause.FINISH.value}
            session.execute(insert(AttemptRecord).values(job_id=job_id, number=1, **attempt))
        for curve in range(CURVES):
            points = [
                {"job_id": f"{0:032x}", "name": f"metric-{curve}", "attempt": 1, "step": step, "value": step % 97 / 7}
                for step in range(CURVE_POINTS)
            ]
            session.execute(insert(MetricRecord), [{**point, "created_at": now} for point in points])
    if jobs:
        _copy(database, jobs, metric_points)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # A server that has run for a while has cleaned up; just filled, it would begin to while it is measured.
        connection.execute(text("ANALYZE" if database.engine.dialect.name == "sqlite" else "VACUUM ANALYZE"))


def _copy(database: Database, jobs: int, metric_points: int) -> None:
    dialect = database.engine.dialect.name
    numbers = _NUMBERS[dialect].format(first=1000, last=1000 + jobs - 1)
    hexadecimal = _HEX[dialect]
    state = (
        "CASE WHEN n.i % 1000 = 0 THEN 'queued' WHEN n.i % 3 = 0 THEN 'failed' WHEN n.i % 3 = 1 THEN 'cancelled' "
        "ELSE 'succeeded' END"
    )
    changed = {"id": hexadecimal, "number": "n.i", "state": state, "idempotency_key": "NULL"}
    cases = " ".join(f"WHEN {number} THEN '{method}'" for number, method in enumerate(HEADLINE))
    changed |= {"method": f"CASE n.i % {len(HEADLINE)} {cases} END"}
    for table, columns, where in (
        ("jobs", changed, f"t.id = '{0:032x}'"),
        ("attempts", {"job_id": hexadecimal, "started_at": "t.started_at - n.i"}, f"t.job_id = '{0:032x}'"),
        ("job_events", {"job_id": hexadecimal}, f"t.job_id = '{0:032x}'"),
    ):
        names = [column.name for column in JobRecord.metadata.tables[table].columns]
        values = ", ".join(columns.get(name, f't."{name}"') for name in names)
        quoted = ", ".join(f'"{name}"' for name in names)
        _execute(database, f"INSERT INTO {table} ({quoted}) ", numbers, f"SELECT {values} FROM n, {table} t WHERE {where}")  # noqa: S608
    # Job by job, as the key is ordered: the other way round every point would land in another page.
    a_job = 100
    numbers = _NUMBERS[dialect].format(first=1000, last=1000 + metric_points // a_job - 1)
    columns = "job_id, name, attempt, step, value, created_at"
    few = f"SELECT * FROM metric_points WHERE job_id = '{0:032x}' AND step < {a_job // CURVES} LIMIT {a_job}"  # noqa: S608
    chosen = f"SELECT {hexadecimal}, t.name, t.attempt, t.step, t.value, t.created_at FROM n CROSS JOIN ({few}) t"  # noqa: S608
    _execute(database, f"INSERT INTO metric_points ({columns}) ", numbers, chosen)


def _execute(database: Database, into: str, numbers: str, chosen: str) -> None:
    with database.transaction() as session:
        session.execute(text(f"{into}{numbers}{chosen}"))


@contextmanager
def serving(url: str, folder: Path) -> Iterator[httpx.Client]:
    """The API on a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "TAFDIL_DATABASE_URL": url,
        "TAFDIL_DATA_DIR": str(folder),
        "TAFDIL_REDIS_URL": os.environ.get("TAFDIL_TEST_REDIS_URL", "redis://127.0.0.1:6379/0"),
        "TAFDIL_REDIS_PREFIX": f"tafdil-bench-{secrets.token_hex(4)}:",
    }
    serve = [sys.executable, "-m", "uvicorn", "api.app:create_app", "--factory", "--port", str(port), "--no-access-log"]
    process = subprocess.Popen(serve, env=environment, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for _ in range(300):
                try:
                    client.get("/v1/jobs", params={"limit": 1}).raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait()


def requests() -> dict[str, tuple[str, dict[str, str | int]]]:
    """By name, what is asked. The jobs that are asked for are the same on both databases."""
    job = f"/v1/jobs/{0:032x}"
    return {
        "list": ("/v1/jobs", {}),
        "list, a page far down": ("/v1/jobs", {"cursor": f"{150:032x}"}),
        "list by state": ("/v1/jobs", {"state": "failed", "limit": 10}),
        "list by state and method": ("/v1/jobs", {"state": "cancelled", "method": "ipo", "limit": 10}),
        "list of queued jobs": ("/v1/jobs", {"state": "queued", "limit": 20}),
        "status, over": (job, {}),
        "status, queued": (f"/v1/jobs/{4:032x}", {}),
        "events, attempts": (f"{job}/attempts", {}),
        "metrics, one curve thinned": (f"{job}/metrics", {"name": "metric-3", "max_points": 500}),
        f"metrics, {CURVES} curves of {CURVE_POINTS:,} thinned": (f"{job}/metrics", {"max_points": 500}),
    }


def measure(client: httpx.Client, count: int) -> dict[str, tuple[float, float]]:
    """By name, (median, 99th percentile) in milliseconds."""
    found: dict[str, tuple[float, float]] = {}
    for name, (path, parameters) in requests().items():
        times: list[float] = []
        # A curve of many points takes long to read, with and without a million jobs beside it.
        for i in range((count if "curves" not in name else count // 10) + 5):
            began = time.perf_counter()
            response = client.get(path, params=parameters)
            elapsed = time.perf_counter() - began
            response.raise_for_status()
            if i >= 5:
                times.append(elapsed * 1000)
        times.sort()
        found[name] = times[len(times) // 2], times[int(len(times) * 0.99)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--metric-points", type=int, default=10_000_000)
    parser.add_argument("--requests", type=int, default=1000, help="of each kind")
    options = parser.parse_args()
    results: list[dict[str, tuple[float, float]]] = []
    for jobs in (0, options.jobs):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            is_sqlite = options.database == "sqlite"
            url = f"sqlite:///{folder / 'jobs.sqlite3'}" if is_sqlite else stack.enter_context(postgres_schema())
            database = Database(url)
            database.migrate()
            began = time.perf_counter()
            fill(database, jobs, options.metric_points)
            database.dispose()
            print(f"{jobs:,} jobs beside: filled in {time.perf_counter() - began:.0f} s", file=sys.stderr)
            results.append(measure(stack.enter_context(serving(url, folder)), options.requests))
            print(json.dumps(results[-1]), file=sys.stderr)
    command = " ".join(["python -m benchmarks.read_latency", *sys.argv[1:]])
    print(
        f"{options.database}, {platform.machine()}, {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}; "
        f"{options.jobs:,} jobs and {options.metric_points:,} metric points beside those that are asked for; "
        f"{options.requests} requests of each kind. Made with `{command}`.\n"
    )
    print("| request | empty: median, ms | p99, ms | full: median, ms | p99, ms | p99, full ÷ empty |")
    print("|---|---|---|---|---|---|")
    for name, (median, p99) in results[0].items():
        full_median, full_p99 = results[1][name]
        print(f"| {name} | {median:.1f} | {p99:.1f} | {full_median:.1f} | {full_p99:.1f} | {full_p99 / p99:.2f} |")


if __name__ == "__main__":
    main()
