"""From a submit to the first optimizer step: where do the seconds go? `python -m benchmarks.first_step`.

The whole service as `tafdil serve` starts it, and jobs without validation data on the model that ships, one after the other:
first each run is a process from nothing (cold), then it is forked from one that has everything imported (warm). A job's own
event `first_step` has most parts and how the run really started; the rest is measured at the client.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from tafdil.client import Client
from tafdil.local_stack import LocalStack

SPEC: dict[str, Any] = {
    "method": "ipo",
    "model_name": "tafdil/tiny-arabic-qwen-2",
    "dataset_path": "samples/pairs_train.jsonl",
    "max_steps": 1,
    "gradient_accumulation_steps": 1,
}
_VARIABLE = "TAFDIL_WARM_START"


def parts_of(client: Client, spec: dict[str, Any], start: str) -> dict[str, float]:
    """Seconds of one job by part, their `sum`, and the run's `CPU`. Events are timed as they arrive at the client."""
    submitted = time.monotonic()
    job_id = client.submit(spec)["id"]
    answered = time.monotonic()
    found: dict[str, Any] = {}
    at: dict[str, float] = {}
    for event in client.events(job_id):
        at[event["event"]] = time.monotonic()
        if event["event"] == "first_step":
            found = event["data"]
    if not found:
        sys.exit(f"job {job_id} made no step:\n{client.logs(job_id)[-2000:]}")
    if found["start"] != start:
        sys.exit(f"job {job_id} started {found['start']}: {found.get('reason')}")
    parts = {"the API's answer": answered - submitted, "queue": at["claimed"] - answered}
    parts["start of the process, reports"] = at["first_step"] - at["claimed"] - sum(found["seconds"].values())
    return {**parts, **found["seconds"], "sum": at["first_step"] - submitted, "CPU": found["cpu_s"]}


def measure(start: str, spec: dict[str, Any], jobs: int) -> list[dict[str, float]]:
    """The parts of each job after one of warm-up."""
    os.environ[_VARIABLE] = str(start == "warm").lower()
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalStack(Path(folder), None, say=lambda text: print(text, file=sys.stderr)) as stack,
        Client(stack.url) as client,
    ):
        return [parts_of(client, spec, start) for _ in range(jobs + 1)][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=7, help="of each kind, after one of warm-up")
    parser.add_argument("--starts", nargs="+", choices=["cold", "warm"], default=["cold", "warm"])
    parser.add_argument("--model", default=SPEC["model_name"])
    options = parser.parse_args()
    found = {start: measure(start, {**SPEC, "model_name": options.model}, options.jobs) for start in options.starts}
    command = " ".join(["python -m benchmarks.first_step", *sys.argv[1:]])
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}, {datetime.now(UTC):%Y-%m-%d}"
    print(f"{machine}; {options.jobs} jobs of each kind after one of warm-up. Made with `{command}`.\n")
    print("| part | " + " | ".join(f"{start}: median, s | maximum, s" for start in found) + " |")
    print("|---|" + "---|---|" * len(found))
    for part in dict.fromkeys(part for jobs in found.values() for part in jobs[0]):
        values = [[job.get(part, 0.0) for job in jobs] for jobs in found.values()]
        print(f"| {part} | " + " | ".join(f"{median(each):.2f} | {max(each):.2f}" for each in values) + " |")


if __name__ == "__main__":
    main()
