"""The whole service on this machine: a job with the model that ships, comparisons, and a job that is cancelled.

On a GPU this is done twice: with runs that import everything by themselves and comparisons beside them, and with runs that
are forked from a process that has everything imported (`TAFDIL_WARM_START=gpu`) and comparisons that take turns with them.

The service runs as `tafdil serve` starts it: every part in a process of its own, with the embedded broker and a free port.
Without a GPU everything runs on the CPU.

Cells that end in `gpu_mib` are the memory in use on the first GPU, by everybody, as `nvidia-smi` reports it, in MiB; None
without a GPU.
"""

import os
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.arm import Options, Row
from benchmarks.gpu.shapes import SHIPPED
from benchmarks.phases import spans
from tafdil.client import Client, Job
from tafdil.errors import TafdilClientError
from tafdil.local_stack import LocalStack
from tafdil.models import Attempt, Event

PROMPT = "هل تعرف اسم عاصمة المغرب؟"
# The README's job, with more points of its loss.
SPEC: dict[str, Any] = {
    "method": "ipo",
    "model_name": "tafdil/tiny-arabic-qwen-2",
    "beta": 0.5,
    "learning_rate": 1e-3,
    "learning_rate_cap": None,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "logging_steps": 4,
}
# So many steps take hours, so that nothing but the cancel ends the job.
LONG = {"max_steps": 100_000, "save_steps": 100_000}
_WARM_START, _SHARING = "TAFDIL_WARM_START", "TAFDIL_GPU_SHARING"
POLL_S = 0.02
MEMORY_POLL_S = 0.5
# After a cancel, memory is read once more after this time: a driver may free it late.
LATER_S = 2.0


def run(options: Options, row: Row) -> None:
    """Records the rows `start`, `train`, `compare` (cold and warm), `cancel` and `stop` of each service.

    If a service's first job does not succeed, `compare` and `cancel` are left out.

    Raises:
        RuntimeError: something did not end as it should. Its row has an `error` with the last lines of the logs.
    """
    ends_at = time.monotonic() + options.seconds
    is_tiny = options.shape == "tiny"
    before_mib = gpu_memory_mib()
    if is_tiny:
        # A model this small takes ten times as long on several threads when other processes want the cores too.
        os.environ["OMP_NUM_THREADS"] = "1"
    errors: list[str] = []

    def record(what: str, cells: dict[str, Any]) -> None:
        row(what=what, warm_start=os.environ[_WARM_START], sharing=os.environ.get(_SHARING), **cells)
        errors.extend([f"{what}: {cells['error']}"] if "error" in cells else [])

    for setting, sharing in (("true", None),) if before_mib is None else (("true", "share"), ("gpu", "training_first")):
        os.environ[_WARM_START] = setting
        if sharing:
            os.environ[_SHARING] = sharing
        _serve(options.folder / setting, is_tiny, before_mib, ends_at, record)
    if errors:
        raise RuntimeError(f"the service failed in {len(errors)} cases; the first: {errors[0]}")


def _serve(
    data: Path, is_tiny: bool, before_mib: int | None, ends_at: float, record: Callable[[str, dict[str, Any]], None]
) -> None:
    said: list[str] = []
    began = time.monotonic()
    with LocalStack(data, port=0, say=said.append) as stack, Client(stack.url) as client:
        record("start", {"seconds": _since(began), "before_gpu_mib": before_mib, "gpu_mib": gpu_memory_mib()})
        train, held_out = (
            client.upload_dataset(SHIPPED / "data" / f"pairs_{name}.jsonl").id for name in ("train", "held_out")
        )
        spec = {**SPEC, "dataset_id": train, "max_steps": 8 if is_tiny else 60}
        job, cells = trained(client, spec if is_tiny else {**spec, "eval_dataset_id": held_out}, ends_at)
        record("train", cells | _service_logs(stack, cells))
        for kind in ("cold", "warm") if job.state == "succeeded" else ():
            cells = compared(client, job, ends_at)
            record("compare", {"kind": kind} | cells | _service_logs(stack, cells))
        if job.state == "succeeded":
            accumulation = {"gradient_accumulation_steps": 4 if is_tiny else 32}
            cells = cancelled(client, {**SPEC, **LONG, **accumulation, "dataset_id": train}, job, ends_at)
            record("cancel", cells | _service_logs(stack, cells))
        began = time.monotonic()
    record("stop", {"seconds": _since(began), "gpu_mib": gpu_memory_mib(), "said": said})


def trained(client: Client, spec: dict[str, Any], ends_at: float) -> tuple[Job, dict[str, Any]]:
    """Submits a job and waits until it is over. Returns it with its cells."""
    submitted_at, before_mib = datetime.now(UTC), gpu_memory_mib()
    job, most_mib = wait(client, client.submit(spec), lambda job: job.is_over, ends_at)
    cells: dict[str, Any] = {"state": job.state, "before_gpu_mib": before_mib, "most_gpu_mib": most_mib}
    if job.state != "succeeded":
        return job, cells | {"error": failure(client, job)}
    events = list(client.events(job.id))
    first = next(event for event in events if event.event == "first_step")
    first_at, over_at = _instant(first.data["at"]), _instant(events[-1].data["at"])
    metadata = client.metadata(job.id)
    losses = client.metrics(job.id, ["loss"])["loss"]
    cells |= {
        "steps": job.step,
        "start": first.data["start"],
        "cold_because": first.data.get("reason"),
        "seconds_to_first_step": round((first_at - submitted_at).total_seconds(), 2),
        # Of the training process alone, by phase.
        "parts_of_it": {name: round(seconds, 2) for name, seconds in first.data["seconds"].items()},
        # Of the whole job, by the phase that the service shows.
        "phases": _phases(events),
        "seconds_from_first_step": round((over_at - first_at).total_seconds(), 2),
        "seconds": round((over_at - submitted_at).total_seconds(), 2),
        "precision": metadata["precision"],
        "first_loss": losses[0]["value"],
        "last_loss": losses[-1]["value"],
        "effect": job.effect,
        "speed": metadata.get("speed"),
        "warnings": [warning["code"] for warning in job.warnings],
    }
    return job, cells | _device(client.attempts(job.id))


def _phases(events: list[Event]) -> dict[str, float]:
    """Seconds of each phase, until the job was over."""
    began = [(event.data["phase"], _instant(event.data["at"]).timestamp()) for event in events if event.event == "phase"]
    found = spans(began, _instant(events[-1].data["at"]).timestamp())
    return {name: round(seconds, 2) for name, seconds in found.items()}


def compared(client: Client, job: Job, ends_at: float) -> dict[str, Any]:
    """Asks a trained model and its reference once. Returns the cells.

    `weights_are_those_trained`: the fingerprints of the weights that answered are those of the job's metadata.
    """
    began = time.monotonic()
    cells: dict[str, Any] = {"device": "gpu" if os.environ.get(_SHARING) else "cpu"}
    try:
        answer = client.compare(job.id, PROMPT, wait_s=max(1.0, min(60.0, ends_at - began)), max_length=48)
    except TafdilClientError as error:
        return cells | {"seconds": _since(began), "error": str(error)}
    cells |= {"seconds": _since(began), "state": answer.state, "gpu_mib": gpu_memory_mib()}
    if answer.result is None:
        return cells | {"error": str(answer.error or "no answer in time")}
    proof, metadata = answer.result["proof"], client.metadata(job.id)
    answered = (proof["trained_fingerprint"], proof["reference_fingerprint"])
    return cells | {
        "both_answered": all(answer.result[f"{side}_response"] for side in ("trained_model", "reference_model")),
        "weights_are_those_trained": answered == (metadata["weights_sha256"], metadata["reference_sha256"]),
        "weights_differ": answered[0] != answered[1],
        "max_logit_difference": proof["max_logit_difference"],
        "mean_kl": proof["mean_kl"],
        "adapter_has_no_effect": proof["adapter_has_no_effect"],
    }


def cancelled(client: Client, spec: dict[str, Any], trained_job: Job, ends_at: float) -> dict[str, Any]:
    """Cancels a long job after its first step, having asked an older job's model meanwhile.

    Returns:
        The cells: seconds until it is `cancelled`, GPU memory, and what the comparison waited for and became.
    """
    before_mib = gpu_memory_mib()
    began = time.monotonic()
    job, _ = wait(client, client.submit(spec), lambda job: job.step >= 1, ends_at)
    cells: dict[str, Any] = {"seconds_to_first_step": _since(began), "before_gpu_mib": before_mib}
    if job.state != "running":
        return cells | {"state": job.state, "error": failure(client, job)}
    cells |= {"during_gpu_mib": gpu_memory_mib(), "step": job.step}
    meanwhile = client.compare(trained_job.id, PROMPT, wait_s=5.0, max_length=8, seed=2)
    cells |= {"asked_meanwhile": meanwhile.state, "waiting_for": meanwhile.waiting_for}
    began = time.monotonic()
    job, _ = wait(client, client.cancel(job.id), lambda job: job.is_over, ends_at, looks_at_memory=False)
    cells |= {"state": job.state, "seconds_to_cancelled": _since(began), "after_gpu_mib": gpu_memory_mib()}
    if before_mib is not None:
        time.sleep(LATER_S)
    cells |= {"later_gpu_mib": gpu_memory_mib(), **_device(client.attempts(job.id))}
    while meanwhile.result is None and meanwhile.error is None and time.monotonic() < ends_at:
        time.sleep(POLL_S)
        meanwhile = client.comparison(trained_job.id, meanwhile.id)
    cells |= {"asked_meanwhile_became": meanwhile.state, "answered_gpu_mib": gpu_memory_mib()}
    if meanwhile.result is None:
        return cells | {"error": f"the comparison that was asked meanwhile is {meanwhile.state}: {meanwhile.error}"}
    return cells if job.state == "cancelled" else cells | {"error": failure(client, job)}


def wait(
    client: Client, job: Job, is_done: Callable[[Job], bool], ends_at: float, *, looks_at_memory: bool = True
) -> tuple[Job, int | None]:
    """Asks for a job until `is_done`, it is over, or `time.monotonic` is at `ends_at`.

    Returns:
        The job, and the most GPU memory seen meanwhile, in MiB.
    """
    look_at, seen = 0.0, [0]
    while not (is_done(job) or job.is_over) and time.monotonic() < ends_at:
        if looks_at_memory and time.monotonic() >= look_at:
            seen.append(gpu_memory_mib() or 0)
            look_at = time.monotonic() + MEMORY_POLL_S
        time.sleep(POLL_S)
        job = client.job(job.id)
    return job, max(seen) or None


def failure(client: Client, job: Job) -> str:
    """What a job that did not end as it should says, with the last lines of its log."""
    lines = client.logs(job.id, last_bytes=4000).splitlines()[-15:]
    return "\n".join([f"the job is {job.state}, phase {job.phase}, step {job.step}: {job.error}", *lines])


def gpu_memory_mib() -> int | None:
    """Memory in use on the first GPU, in MiB; None without `nvidia-smi`, or where it does not say."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return int(found[0]) if found and found[0].isdigit() else None


def _device(attempts: list[Attempt]) -> dict[str, Any]:
    """What the last attempt says of its device. Memory is in MiB."""
    last = attempts[-1]
    report = last.get("device_report") or {}
    size = {name: report.get(f"memory_{name}_bytes") for name in ("before", "after")} | {"last": last.get("memory_bytes")}
    return {
        "device": last.device,
        "device_name": report.get("name"),
        "outcome": last.outcome,
        "attempts": len(attempts),
        "processes_left": report.get("processes_left"),
        "attempt_mib": {name: None if found is None else found // 2**20 for name, found in size.items()},
    }


def _service_logs(stack: LocalStack, cells: dict[str, Any]) -> dict[str, Any]:
    """For cells with an error: the last lines of the logs of the parts that answer, train and compare."""
    if "error" not in cells:
        return {}
    logs: list[Path] = [stack.data_dir / "logs" / f"{part}.log" for part in ("api", "train-worker", "generation-worker")]
    return {"service_logs": {path.stem: path.read_text(errors="replace").splitlines()[-8:] for path in logs}}


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 2)
