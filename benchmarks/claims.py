"""Do many processes that claim at once ever win the same job? `python -m benchmarks.claims --claims 100000`.

Eight processes claim until nothing is queued, each as fast as it can; jobs are submitted beforehand. Every claim writes an
event and an attempt as in service. One winner a job, or the run fails.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import insert, text

from jobs.database import Database
from jobs.records import EventRecord, JobRecord
from jobs.repository import jobs
from tests.integration.test_repository import FIELDS
from tests.servers import postgres_schema

_BATCH = 1000


def fill(url: str, count: int) -> None:
    """So many queued jobs, in bulk."""
    database = Database(url)
    database.migrate()
    for start in range(0, count, _BATCH):
        ids = [f"{number:032x}" for number in range(start, min(start + _BATCH, count))]
        base = {**FIELDS, "state": "queued", "warnings": [], "event_count": 1, "created_at": 0.0, "published_at": 0.0}
        with database.transaction() as session:
            session.execute(insert(JobRecord), [{**base, "id": job_id} for job_id in ids])
            events = [{"job_id": job_id, "sequence": 1, "type": "queued", "data": {}, "created_at": 0.0} for job_id in ids]
            session.execute(insert(EventRecord), events)
    if database.engine.dialect.name == "postgresql":
        with database.transaction() as session:
            session.execute(text("ANALYZE"))
    database.dispose()


def claim_all(
    url: str, worker: int, began: "multiprocessing.synchronize.Event", won: "multiprocessing.Queue[list[str]]"
) -> None:
    database = Database(url)
    began.wait()
    mine: list[str] = []
    misses = 0
    # Under load a claim may pass over rows that others hold at that moment, so one miss is not the end.
    while misses < 20:
        with database.transaction() as session:
            job = jobs.claim_next(session, f"worker-{worker}", 60)
        if job is None:
            misses += 1
            time.sleep(0.01)
        else:
            misses = 0
            mine.append(job.id)
    database.dispose()
    won.put(mine)


def race(url: str, claims: int, processes: int) -> dict[str, float]:
    """Fills the table, lets the processes race, and returns the counts. `winners_twice` must be 0 and `unclaimed` too."""
    fill(url, claims)
    context = multiprocessing.get_context("spawn")
    began, won = context.Event(), context.Queue()
    racers = [context.Process(target=claim_all, args=(url, n, began, won)) for n in range(processes)]
    for racer in racers:
        racer.start()
    start = time.monotonic()
    began.set()
    found = [won.get() for _ in racers]
    seconds = time.monotonic() - start
    for racer in racers:
        racer.join()
    every = [job_id for mine in found for job_id in mine]
    return {
        "claims": len(every),
        "processes": processes,
        "least_by_one": min(len(mine) for mine in found),
        "winners_twice": len(every) - len(set(every)),
        "unclaimed": claims - len(set(every)),
        "claims_a_second": round(len(every) / seconds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="postgresql")
    options = parser.parse_args()
    with ExitStack() as stack:
        if options.database == "sqlite":
            url = f"sqlite:///{Path(stack.enter_context(tempfile.TemporaryDirectory())) / 'claims.sqlite3'}"
        else:
            url = stack.enter_context(postgres_schema())
        result = race(url, options.claims, options.processes)
    print(json.dumps({"database": options.database, **result}))
    return int(result["winners_twice"] > 0 or result["unclaimed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
