"""A run on a GPU whose memory another process holds: it is lost and retried, and succeeds once there is room.

Two cases: nothing is left, so that a process cannot even begin to use the GPU; and a little, so that the run fails later.
"""

import subprocess
import sys
import time
from typing import Any

from benchmarks.gpu.arm import Options, Row
from benchmarks.gpu.service import SHIPPED, SPEC, failure, gpu_memory_mib, wait
from tafdil.client import Client, Job
from tafdil.local_stack import LocalStack

LEFT_MIB = {"nothing": 0, "a little": 700}
# Fills the GPU until the given number of MiB is free, and holds the memory until stdin is closed.
_HOLD = """
import sys, torch
blocks = []
for mib in (4096, 256, 16, 1):
    try:
        while torch.cuda.mem_get_info()[0] > (int(sys.argv[1]) + mib) * 2**20:
            blocks.append(torch.empty(mib * 2**20, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        pass
print("held", flush=True)
sys.stdin.read()
"""


def run(options: Options, row: Row) -> None:
    """Records a row a case. Without a GPU there is none.

    Raises:
        RuntimeError: a job did not succeed; its row has an `error`.
    """
    if gpu_memory_mib() is None:
        return
    ends_at = time.monotonic() + options.seconds
    errors: list[str] = []
    variables = {"TAFDIL_MEMORY_PAUSE_S": "2"}
    with LocalStack(options.folder, port=0, say=lambda _: None, variables=variables) as stack, Client(stack.url) as client:
        data = client.upload_dataset(SHIPPED / "data" / "pairs_train.jsonl").id
        for left, mib in LEFT_MIB.items():
            cells = {"left": left, **_delayed(client, {**SPEC, "dataset_id": data, "max_steps": 20}, mib, ends_at)}
            row(**cells)
            errors += [cells["error"]] if "error" in cells else []
    if errors:
        raise RuntimeError(errors[0])


def _delayed(client: Client, spec: dict[str, Any], left_mib: int, ends_at: float) -> dict[str, Any]:
    """Submits a job while the memory is held, and frees the memory when its first attempt is over. Returns the cells."""
    command = [sys.executable, "-c", _HOLD, str(left_mib)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin
        assert holder.stdout
        holder.stdout.readline()
        held_mib = gpu_memory_mib()
        job = client.submit(spec)

        def is_first_over(job: Job) -> bool:
            attempts = client.attempts(job.id)
            return bool(attempts and attempts[0].outcome)

        job, _ = wait(client, job, is_first_over, ends_at, looks_at_memory=False)
        holder.stdin.close()
    job, _ = wait(client, job, lambda job: job.is_over, ends_at, looks_at_memory=False)
    attempts = client.attempts(job.id)
    cells: dict[str, Any] = {
        "held_gpu_mib": held_mib,
        "outcomes": [attempt.outcome for attempt in attempts],
        "reasons": [attempt.reason for attempt in attempts],
        "state": job.state,
    }
    return cells if job.state == "succeeded" else cells | {"error": failure(client, job)}
