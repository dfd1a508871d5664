"""Is a resumed training equal to an unbroken one on this device, to the last bit?

Each method trains three times with the same settings: straight through, straight through again, and stopped half-way (as a
pause stops a job) and resumed. Where the repeat already differs, the device's kernels are not deterministic, and a resume
cannot be equal either; its difference stands next to the repeat's. All of it happens as torch is by default, and again
under `torch.use_deterministic_algorithms`. If torch refuses an operation there, the row reports its message, and
the three runs are repeated with warnings instead of errors.
"""

import gc
import json
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.arm import Options, Row
from benchmarks.gpu.shapes import make_rows, model_in
from trainer_core.config import CONFIG_OF, default_for
from trainer_core.row_rules import LABELLED, PAIRS

ROOT = Path(__file__).resolve().parents[2]
METHODS = (default_for(PAIRS), default_for(LABELLED))
STEPS, HALF, BATCH = 6, 3, 4
# cuBLAS reads it when CUDA starts. Without it, torch refuses its matrix products under deterministic algorithms.
WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
# Processes on fewer cores than this would mostly wait for each other.
CORES_PER_PROCESS = 4


def run(options: Options, row: Row) -> None:
    """Records one row per method, without and with deterministic algorithms.

    Raises:
        RuntimeError: a training failed; the rows say why. The others have run.
    """
    ends_at = time.monotonic() + options.seconds
    shape = options.shape or "qwen2.5-0.5b"
    prompt_tokens, answer_tokens = (48, 24) if shape == "tiny" else (128, 64)
    model = model_in(options.models, shape)
    for method in METHODS:
        path = options.folder / f"{method}.jsonl"
        make_rows(path, method, rows=STEPS * BATCH, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)

    def answer(method: str, is_deterministic: bool) -> dict[str, Any]:
        named = {"shape": shape, "method": method, "deterministic": is_deterministic}
        lengths = {"max_prompt_length": prompt_tokens, "max_length": prompt_tokens + answer_tokens}
        return named | _in_own_process({**named, **lengths, "folder": str(options.folder), "model": str(model)}, ends_at)

    at_once = max(1, min(4, (os.cpu_count() or 1) // CORES_PER_PROCESS))
    errors: list[str] = []
    with ThreadPoolExecutor(at_once) as pool:
        cases = [(method, flag) for method in METHODS for flag in (False, True)]
        # Small ones cost a process each and show little.
        asked = [pool.submit(answer, *case) for case in (cases[1:3] if shape == "tiny" else cases)]
        for done in as_completed(asked):
            cells = done.result()
            row(**cells, processes_at_once=at_once)
            errors += [cells["error"]] if "error" in cells else []
    if errors:
        raise RuntimeError(f"{len(errors)} of {len(asked)} comparisons failed; the first: {errors[0]}")


def _in_own_process(given: dict[str, Any], ends_at: float) -> dict[str, Any]:
    """The cells of one row: what `compare` returns, or an `error`. `ends_at` is in seconds of `time.monotonic`."""
    # A model this small takes ten times as long on several threads when other processes want the cores too.
    threads = {"OMP_NUM_THREADS": "1"} if given["shape"] == "tiny" else {}
    environment = {**os.environ, **threads, **(WORKSPACE if given["deterministic"] else {})}
    left_s = ends_at - time.monotonic()
    if left_s <= 0:
        return {"error": "not started: no time was left"}
    command = [sys.executable, "-m", "benchmarks.gpu.resume", json.dumps(given)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=left_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {left_s:.0f} s"}
    if done.returncode:
        return {"error": f"exit code {done.returncode}: {done.stderr[-2000:]}"}
    return json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Ending:
    """What a training left.

    Attributes:
        weights: the trained adapter's tensors by name, on the CPU.
        half: the same from the checkpoint of step `HALF`.
        losses: the loss of each step that this training, or its second part, made.
        sha256: fingerprint of `weights`.
        precision: of the arithmetic.
    """

    weights: dict[str, Any]
    half: dict[str, Any]
    losses: dict[int, float]
    sha256: str
    precision: str


def train(given: dict[str, Any], name: str, *, is_cut: bool, said: set[str]) -> Ending:
    """Trains once: straight through, or stopped at step `HALF` and resumed. Codes of warnings go to `said`."""
    from safetensors.torch import load_file

    from trainer_core import PreferenceTrainer
    from trainer_core.errors import Stopped
    from trainer_core.fingerprints import adapter_tensors, fingerprint
    from trainer_core.observer import Observer
    from trainer_core.reference import TRAINED_ADAPTER

    losses: dict[int, float] = {}

    class Watch(Observer):
        """Keeps losses and warnings, and stops after a step as a pause does."""

        def __init__(self, stop_after: int | None) -> None:
            self.step, self.stop_after = 0, stop_after

        def progress(self, step: int, total_steps: int) -> None:
            self.step = step

        def metrics(self, step: int, values: dict[str, float | None]) -> None:
            if (loss := values.get("loss")) is not None:
                losses[step] = loss

        def warning(self, code: str, message: str) -> None:
            said.add(code)

        def effect(self, verdict: str, evidence: dict[str, Any]) -> None:
            pass

        def should_stop(self) -> bool:
            return self.step == self.stop_after

    folder = Path(given["folder"])
    output = folder / f"{given['method']}-{given['deterministic']}-{name}"
    kind: Any = CONFIG_OF[given["method"]]
    config = kind(
        model_name=given["model"],
        dataset_path=str(folder / f"{given['method']}.jsonl"),
        output_dir=str(output),
        max_prompt_length=given["max_prompt_length"],
        max_length=given["max_length"],
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        # Large enough that a difference of one step reaches the losses of the next ones.
        learning_rate=1e-4,
        learning_rate_cap=None,
        max_steps=STEPS,
        save_steps=HALF,
        logging_steps=1,
        # Answers that nothing here compares take longer than the steps.
        sample_generations=0,
    )
    if is_cut:
        try:
            PreferenceTrainer(config, observer=Watch(HALF)).train()
        except Stopped:
            pass
        else:
            raise RuntimeError(f"the training did not stop at step {HALF}")
        free_memory()
    trainer = PreferenceTrainer(config, observer=Watch(None))
    trainer.train(resume_from_checkpoint=output / f"checkpoint-{HALF}" if is_cut else None)
    step = trainer.trainer.state.global_step
    if step != STEPS:
        raise RuntimeError(f"the training ended at step {step}, not {STEPS}")
    weights = {name: tensor.detach().cpu() for name, tensor in adapter_tensors(trainer.model, TRAINED_ADAPTER)}
    half = load_file(output / f"checkpoint-{HALF}" / "adapter_model.safetensors")
    return Ending(weights, half, losses, fingerprint(weights.items()), trainer.precision)


def free_memory() -> None:
    """Frees the device memory of finished runs."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def compare(given: dict[str, Any]) -> dict[str, Any]:
    """Trains three times in this process.

    Returns:
        Whether the repeat and the resumed training are equal to the first one, and the largest absolute differences of
        trained weights and of the losses of the steps after `HALF`. `..._half_equal`: whether the weights were still
        equal at step `HALF`, before anything was resumed.
    """
    import torch

    began = time.perf_counter()
    cells: dict[str, Any] = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"}
    said: set[str] = set()
    torch.use_deterministic_algorithms(given["deterministic"])

    def thrice(prefix: str) -> list[Ending]:
        ends: list[Ending] = []
        for name, is_cut in (("first", False), ("repeat", False), ("resumed", True)):
            ends.append(train(given, prefix + name, is_cut=is_cut, said=said))
            free_memory()
        return ends

    ends: list[Ending] = []
    try:
        ends = thrice("")
    except RuntimeError as error:
        if not given["deterministic"] or "deterministic" not in str(error):
            raise
        cells["refused"] = str(error).splitlines()[0]
    if not ends:
        torch.use_deterministic_algorithms(True, warn_only=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ends = thrice("warned-")
        messages = {str(one.message).splitlines()[0] for one in caught}
        cells["not_deterministic"] = sorted(message for message in messages if "deterministic" in message)
    first, repeat, resumed = ends
    for name, other in (("repeat", repeat), ("resume", resumed)):
        cells |= {
            f"{name}_equal": other.sha256 == first.sha256 and _loss_difference(first, other) == 0.0,
            f"{name}_half_equal": _weight_difference(first.half, other.half) == 0.0,
            f"{name}_weight_difference": _weight_difference(first.weights, other.weights),
            f"{name}_loss_difference": _loss_difference(first, other),
        }
    return cells | {
        "precision": first.precision,
        "warnings": sorted(said),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _weight_difference(first: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest absolute difference of two sets of tensors. Raises `KeyError` if they do not have the same names."""
    if first.keys() != other.keys():
        raise KeyError(f"other weights: {sorted(first.keys() ^ other.keys())[:3]}")
    return max(float((tensor.double() - other[name].double()).abs().max()) for name, tensor in first.items())


def _loss_difference(first: Ending, other: Ending) -> float:
    """The largest absolute difference of the losses after step `HALF`."""
    return max(abs(first.losses[step] - other.losses[step]) for step in range(HALF + 1, STEPS + 1))


if __name__ == "__main__":
    print(json.dumps(compare(json.loads(sys.argv[1]))))
