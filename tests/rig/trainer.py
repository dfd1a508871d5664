"""A training that takes seconds: real reports, real checkpoints, real signals, and no model.

Its state after step n is a hash over all steps, so that a step that was lost or done twice shows in the result. The job's
`name` may be a JSON object that says how it behaves; see `Behaviour`.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tests.checkpoints import PARTS, write_parts
from tests.rig.history import note
from trainer_core.checkpoints import prune, publish, verified_step
from worker import child

TRAINER_STATE = "trainer_state.json"
LINGER_S = 0.5


class Behaviour(BaseModel):
    """How a training behaves; a fault is named by the step at which it happens."""

    model_config = ConfigDict(extra="forbid")

    load_s: float = 0.0
    step_s: float = 0.02
    save_s: float = 0.0
    eval_s: float = 0.0
    end_s: float = 0.0
    """How long the final save takes."""
    kill_at: int | None = None
    hang_at: int | None = None
    hang_attempts: int = 1
    """Attempts up to this one hang."""
    linger_at: int | None = None
    """From this step on, each takes `LINGER_S`: what a test does in the middle of a run finds it running on any machine."""
    linger_attempts: int = 1
    """Attempts up to this one linger. Later ones lose no time."""
    allocate_at: int | None = None
    memory_file: str | None = None
    """A file that stands for device memory: bytes are added while the process lives and never given back by itself."""
    filler_bytes: int = 0
    """Size of a checkpoint."""


def state_after(steps: int, seed: int = 0) -> str:
    """The state that a training of so many steps must have."""
    state = str(seed)
    for step in range(1, steps + 1):
        state = hashlib.sha256(f"{state}/{step}".encode()).hexdigest()
    return state


def train(plan: dict[str, Any], reports: child.Reports, stop: threading.Event) -> None:
    spec, job_id, attempt = plan["spec"], plan["job_id"], plan["attempt"]
    behaviour = Behaviour.model_validate_json(spec["name"] or "{}")
    output = Path(plan["places"]["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    note("start", job=job_id, attempt=attempt)
    reports.send("phase", phase="preparing")
    reports.send("phase", phase="loading")
    if behaviour.memory_file:
        Path(behaviour.memory_file).write_text(str(os.getpid()))
    time.sleep(behaviour.load_s)
    step, state = 0, "0"
    found = child.newest_checkpoint(plan)
    if found:
        step = verified_step(found) or 0
        state = json.loads((found / TRAINER_STATE).read_text())["state"]
        reports.send("checkpoint_loaded", step=step, job_id=found.parents[2].name)
    first = step + 1
    total, every = spec["max_steps"], spec["save_steps"] or 5
    reports.send("phase", phase="training")
    reports.send("progress", step=step, total_steps=total)
    while step < total:
        step += 1
        _misbehave(behaviour, step, attempt)
        lingers = behaviour.linger_at is not None and step >= behaviour.linger_at and attempt <= behaviour.linger_attempts
        time.sleep(LINGER_S if lingers else behaviour.step_s)
        state = hashlib.sha256(f"{state}/{step}".encode()).hexdigest()
        note("step", job=job_id, attempt=attempt, step=step)
        reports.send("metrics", step=step, values={"loss": 1 / step, "none": None})
        if step == first:
            reports.send("first_step", step=step, seconds={})
        reports.send("progress", step=step, total_steps=total)
        leaves = stop.is_set() and step < total
        if leaves or step % every == 0 or step == total:
            _save(output, step, state, behaviour, reports)
            note("checkpoint", job=job_id, attempt=attempt, step=step)
        if leaves:
            note("stopped", job=job_id, attempt=attempt, step=step)
            reports.send("stopped")
            return
        if step == total // 2 and behaviour.eval_s:
            reports.send("phase", phase="evaluating")
            time.sleep(behaviour.eval_s)
            reports.send("phase", phase="training")
    reports.send("phase", phase="saving")
    time.sleep(behaviour.end_s)
    (output / "result.json").write_text(json.dumps({"state": state}))
    note("finished", job=job_id, attempt=attempt)
    reports.send("finished", metadata={"training_method": spec["method"], "state": state, "attempt": attempt})


def _misbehave(behaviour: Behaviour, step: int, attempt: int) -> None:
    if step == behaviour.kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    if step == behaviour.hang_at and attempt <= behaviour.hang_attempts:
        time.sleep(10_000)
    if step == behaviour.allocate_at:
        held = []
        while True:
            held.append(bytearray(os.urandom(2**10) * 2**10))


def _save(output: Path, step: int, state: str, behaviour: Behaviour, reports: child.Reports) -> None:
    reports.send("phase", phase="saving")
    staged = output / f".staging-{step}-{os.getpid()}" / f"checkpoint-{step}"

    def filler() -> bytes:
        time.sleep(behaviour.save_s / len(PARTS))
        return os.urandom(behaviour.filler_bytes // len(PARTS) or 64)

    write_parts(staged, filler)
    (staged / TRAINER_STATE).write_text(json.dumps({"state": state}))
    publish(staged, output, step)
    staged.parent.rmdir()
    prune(output, 2, (step,))
    reports.send("checkpoint", step=step)
    reports.send("phase", phase="training")


def preload() -> None:
    """Nothing is left to import here."""


def main() -> int:
    return child.main(train)


if __name__ == "__main__":
    sys.exit(main())
