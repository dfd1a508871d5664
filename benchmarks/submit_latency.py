"""From a submit to the first optimizer step: where do the seconds go? `python -m benchmarks.submit_latency`.

The whole service as `tafdil serve` starts it, and jobs one after the other on the model that ships. A job's own event
`first_step` tells most parts; the rest is measured at the client.
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
    "model_name": "tafdil/tiny-arabic-qwen",
    "dataset_path": "samples/pairs_train.jsonl",
    "max_steps": 1,
    "gradient_accumulation_steps": 1,
}


def parts_of(client: Client, spec: dict[str, Any]) -> dict[str, float]:
    """Seconds of one job by part, and their `sum`. Events are timed as they arrive at the client."""
    submitted = time.monotonic()
    job_id = client.submit(spec)["id"]
    answered = time.monotonic()
    seconds: dict[str, float] = {}
    at: dict[str, float] = {}
    for event in client.events(job_id):
        at[event["event"]] = time.monotonic()
        if event["event"] == "first_step":
            seconds = event["data"]["seconds"]
    if not seconds:
        sys.exit(f"job {job_id} made no step:\n{client.logs(job_id)[-2000:]}")
    parts = {"the API's answer": answered - submitted, "queue": at["claimed"] - answered}
    parts["start of the process, reports"] = at["first_step"] - at["claimed"] - sum(seconds.values())
    return {**parts, **seconds, "sum": at["first_step"] - submitted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=7, help="the first is warm-up")
    parser.add_argument("--model", default=SPEC["model_name"])
    options = parser.parse_args()
    spec = {**SPEC, "model_name": options.model}
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalStack(Path(folder), None, say=lambda text: print(text, file=sys.stderr)) as stack,
        Client(stack.url) as client,
    ):
        found = [parts_of(client, spec) for _ in range(options.jobs)][1:]
    command = " ".join(["python -m benchmarks.submit_latency", *sys.argv[1:]])
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}; {len(found)} jobs after one of "
        f"warm-up. Made with `{command}`.\n"
    )
    print("| part | median, s | maximum, s |")
    print("|---|---|---|")
    for part in found[0]:
        values = [parts.get(part, 0.0) for parts in found]
        print(f"| {part} | {median(values):.2f} | {max(values):.2f} |")


if __name__ == "__main__":
    main()
