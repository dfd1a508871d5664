"""How long recovery takes with the product's own lease times: `python -m benchmarks.recovery_times`.

Each trial causes one fault on a running training (real API, dispatcher, Celery worker, PostgreSQL; trainings of many short
steps under the product's supervisor) and waits for its effect. Workers are tried side by side, so that thirty trials of a
minute each take a few minutes. Prints a table of medians and maxima.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from tafdil.client import Client
from tafdil.errors import TafdilClientError
from tests.rig.stack import Rig, job_spec, running, with_rows
from tests.stack import alive, until

REAL = {
    "TAFDIL_LEASE_S": "60",
    "TAFDIL_HEARTBEAT_S": "10",
    "TAFDIL_DISPATCH_S": "5",
    "TAFDIL_REPUBLISH_S": "30",
    "TAFDIL_REQUEST_POLL_S": "0.5",
    "TAFDIL_DRAIN_GRACE_S": "60",
    "TAFDIL_MAX_LOSSES": "1000",
}
STEP_S, SAVE_S, EVERY = 0.5, 0.5, 20
LONG = {"step_s": STEP_S, "save_s": SAVE_S}


class Trials:
    """Trials on one rig, `workers` at a time."""

    def __init__(self, rig: Rig, client: Client, workers: int) -> None:
        self.rig, self.client, self.workers = rig, client, workers

    def start(self) -> list[tuple[str, int]]:
        """One running training a worker, at unlike steps: their jobs and processes."""
        ids = [self.client.submit(job_spec(100_000, EVERY, LONG))["id"] for _ in range(self.workers)]
        for job_id in ids:
            running(self.client, job_id, 3, 240)
        time.sleep(3)
        return [(job_id, self.rig.lines(job_id, "start")[-1]["pid"]) for job_id in ids]

    def end(self, ids: list[str]) -> None:
        for job_id in ids:
            with suppress(TafdilClientError):
                self.client.cancel(job_id)
        until(lambda: self.rig.watch() or all(self.client.job(j)["state"] in ("cancelled", "failed") for j in ids), 240)

    def worker_lost(self) -> list[dict[str, float]]:
        """From SIGKILL of a worker's main process to the job being queued again, and the steps that were lost."""
        jobs = self.start()
        began = {}
        for job_id, training in jobs:
            main = psutil.Process(self.rig.supervisor_of(training)).ppid()
            os.kill(main, signal.SIGKILL)
            began[job_id] = time.monotonic()
            time.sleep(1.3)
        found = {}

        def look() -> bool:
            for job_id, _ in jobs:
                if job_id not in found and self.client.attempts(job_id)[0]["outcome"] == "worker_lost":
                    found[job_id] = time.monotonic() - began[job_id]
            return len(found) == len(jobs)

        until(look, 150)
        until(lambda: self.rig.watch() or all(len(self.rig.lines(j, "start")) >= 2 for j, _ in jobs), 240)
        until(lambda: all(self.client.attempts(j)[1]["first_step"] is not None for j, _ in jobs), 60)
        lost = {}
        for job_id, _ in jobs:
            done = max(line["step"] for line in self.rig.lines(job_id, "step") if line["attempt"] == 1)
            lost[job_id] = done - self.client.attempts(job_id)[1]["first_step"]
        self.end([job_id for job_id, _ in jobs])
        return [{"worker lost → requeued": found[j], "steps lost to the kill": lost[j]} for j, _ in jobs]

    def cancel(self) -> list[dict[str, float]]:
        """From the cancel's reply to the process being gone, and to the job being told cancelled."""
        jobs = self.start()
        results = []
        for job_id, training in jobs:
            began = time.monotonic()
            self.client.cancel(job_id)
            until(lambda training=training: not alive({training}), 60, 0.01)
            gone = time.monotonic() - began
            self.client.wait(job_id, 60, 0.05)
            results.append({"cancel → process gone": gone, "cancel → told": time.monotonic() - began})
        return results

    def drain(self) -> list[dict[str, float]]:
        """From TERM to the worker's main process to its end, beyond one step and one save; and the steps lost."""
        jobs = self.start()
        results = []
        for job_id, training in jobs:
            main = psutil.Process(self.rig.supervisor_of(training)).ppid()
            began = time.monotonic()
            os.kill(main, signal.SIGTERM)
            until(lambda training=training: not alive({training}), 120, 0.02)
            until(lambda job_id=job_id: self.client.attempts(job_id)[0]["outcome"] == "preempted", 60, 0.05)
            requeued = time.monotonic() - began
            until(lambda main=main: not alive({main}), 120, 0.05)
            ended = time.monotonic() - began
            done = max(line["step"] for line in self.rig.lines(job_id, "step") if line["attempt"] == 1)
            lost = done - self.client.job(job_id)["checkpoint_step"]
            over = STEP_S + SAVE_S
            results.append(
                {
                    "TERM → requeued, beyond a step and a save": max(0.0, requeued - over),
                    "TERM → worker gone, beyond a step and a save": max(0.0, ended - over),
                    "steps lost to TERM": lost,
                }
            )
        until(lambda: self.rig.watch() or self.rig.is_up("train-worker-1"), 30)
        self.end([job_id for job_id, _ in jobs])
        return results


def table(results: list[dict[str, float]]) -> str:
    """Medians and maxima as a Markdown table; seconds unless the name says steps."""
    lines = ["| what | trials | median | maximum |", "|---|---|---|---|"]
    names = list(dict.fromkeys(name for result in results for name in result))
    for name in names:
        values = [result[name] for result in results if name in result]
        unit, digits = ("", 0) if "steps" in name else (" s", 1)
        lines.append(f"| {name} | {len(values)} | {median(values):.{digits}f}{unit} | {max(values):.{digits}f}{unit} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--workers", type=int, default=10)
    options = parser.parse_args()
    results: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="tafdil-times-", ignore_cleanup_errors=True) as folder:
        rig = Rig(Path(folder), options.workers, 1, "postgresql", REAL, forks=False)
        with rig, Client(rig.url) as client:
            with_rows(rig)
            trials = Trials(rig, client, options.workers)
            kinds: list[Callable[[], list[dict[str, Any]]]] = [trials.cancel, trials.worker_lost, trials.drain]
            for kind in kinds:
                done = 0
                while done < options.trials:
                    found = kind()
                    done += len(found)
                    results += found
                    print(f"{kind.__name__}: {done} trials\n{table(results)}", file=sys.stderr, flush=True)
                    until(lambda: rig.watch() or all(rig.is_up(s.name) for s in rig._services), 60)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
