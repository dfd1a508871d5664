"""How fast do the three methods train here, next to TRL's own trainers on the same rows, weights and seed?

    python -m benchmarks.train_throughput                                  # the shapes and methods of docs/performance.md
    python -m benchmarks.train_throughput --methods ipo --shapes 256/128 --runs 1
    python -m benchmarks.train_throughput --device cuda --model qwen2.5-0.5b

Each run is a process of its own: TRL's trainer as its documentation uses it, or this library, with the same LoRA adapters,
the same batches in the same order and the same precision. Runs of the two alternate; the table shows medians, and the
largest relative difference of a step's loss. Rows are words of the shipped data, their lengths drawn from 0.4 to 1.6 times
the shape's prompt and answer; weights are random, as speed and memory depend on shapes alone.
"""

import argparse
import json
import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.shapes import SHAPES, make_model
from benchmarks.gpu.sides import Workload, attention_by, stock
from trainer_core.config import HEADLINE, METHODS

ROW_SHAPES = ("256/128", "64/64", "512/64")
SIDES = ("stock", "core")
WARM_UP_STEPS = 1


def workload(method: str, shape: str, folder: Path, options: argparse.Namespace) -> Workload:
    return Workload(folder / "model", folder, method, shape, options.batch, options.steps, in_4bit=options.in_4bit)


def run_one(side: str, method: str, shape: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One training in this process."""
    import torch

    from trainer_core import PreferenceTrainer
    from trainer_core.observer import Observer

    config = workload(method, shape, folder, options).config()
    losses: list[float] = []
    times: list[float] = []

    def ended(step: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            if step == WARM_UP_STEPS:
                torch.cuda.reset_peak_memory_stats()
        times.append(time.perf_counter())

    class Clock(Observer):
        def progress(self, step: int, total_steps: int) -> None:
            ended(step)

        def metrics(self, step: int, values: dict[str, float | None]) -> None:
            if "loss" in values:
                losses.append(values["loss"] or math.nan)

    trainer = PreferenceTrainer(config, observer=Clock())
    trainer.load()
    # Loading has switched cuDNN off, which stock TRL does not.
    attention_by(kernel=True, cudnn=side == "stock")
    report = trainer.data_loader.report()["train"]
    if side == "core":
        trainer.train()
    else:
        losses += run_stock(trainer, folder / "stock", ended)
    seconds = [later - earlier for earlier, later in pairwise(times)][-(options.steps - WARM_UP_STEPS) :]
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {
        "step_s": sum(seconds) / len(seconds),
        "tokens_per_s": report["total_tokens"] / report["rows"] * options.batch / (sum(seconds) / len(seconds)),
        "peak_gib": peak / 2**30,
        "losses": losses,
        "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU, {torch.get_num_threads()} cores",
    }
    if side == "core":
        found["acceleration"] = trainer.acceleration_metadata()
    return found


def run_stock(ours: Any, folder: Path, ended: Callable[[int], None]) -> list[float]:
    """TRL's trainer on ours' rows, with ours' adapters. The losses of its steps."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ended(state.global_step)

    trainer = stock(ours, folder)
    trainer.add_callback(Clock())
    torch.manual_seed(ours.config.seed)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def compared(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of both sides' runs, and how they relate."""
    stock, core = (
        {name: median(run[name] for run in runs[side]) for name in ("step_s", "tokens_per_s", "peak_gib")} for side in SIDES
    )
    pairs = [pair for a, b in zip(*runs.values(), strict=True) for pair in zip(a["losses"], b["losses"], strict=True)]
    return {
        "stock": stock,
        "core": core,
        "faster": stock["step_s"] / core["step_s"],
        "memory": core["peak_gib"] / stock["peak_gib"],
        "loss_difference": max(abs(a - b) / abs(a) for a, b in pairs),
        "acceleration": runs["core"][0]["acceleration"],
    }


def as_markdown(found: dict[tuple[str, str], dict[str, Any]], device: str, options: argparse.Namespace) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft"))
    command = " ".join(["python -m benchmarks.train_throughput", *sys.argv[1:]])
    lines = [
        f"{device}, {datetime.now(UTC):%Y-%m-%d}; {options.model}, {'4-bit' if options.in_4bit else 'full'} weights, LoRA; "
        f"{options.batch} rows or pairs a batch, {options.steps - WARM_UP_STEPS} steps after {WARM_UP_STEPS} of warm-up, "
        f"{options.runs} runs each; {versions}. Made with `{command}`.",
        "",
        "| prompt/answer | method | stock, s a step | core, s a step | times faster | stock, tokens/s | core, tokens/s "
        "| stock, GiB | core, GiB | memory | tokens computed | largest loss difference |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (shape, method), one in found.items():
        saved = one["acceleration"]
        share = f"{saved['tokens_computed'] / saved['tokens_plain']:.0%}" if saved["tokens_plain"] else saved["path"]
        stock, core = one["stock"], one["core"]
        cells = (
            shape,
            method.upper(),
            f"{stock['step_s']:.2f}",
            f"{core['step_s']:.2f}",
            f"**{one['faster']:.2f}**",
            f"{stock['tokens_per_s']:.0f}",
            f"{core['tokens_per_s']:.0f}",
            f"{stock['peak_gib']:.2f}",
            f"{core['peak_gib']:.2f}",
            f"{one['memory']:.0%}",
            share,
            f"{one['loss_difference']:.1e}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=HEADLINE)
    parser.add_argument("--shapes", nargs="+", default=ROW_SHAPES, help="prompt/answer tokens")
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--in-4bit", action="store_true")
    parser.add_argument("--runs", type=int, default=3, help="of each side; medians are shown")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps, the first is warm-up")
    parser.add_argument("--batch", type=int, default=4, help="rows or pairs a step, at least 2")
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "METHOD", "SHAPE"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(*options.one, options.folder, options)))
        return
    found: dict[tuple[str, str], dict[str, Any]] = {}
    device = ""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_model(folder / "model", options.model, "bfloat16" if options.device == "cuda" else "float32")
        for shape in options.shapes:
            for method in options.methods:
                workload(method, shape, folder, options).write_rows()
                runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
                for _ in range(options.runs):
                    for side in SIDES:
                        runs[side].append(_run(side, method, shape, folder))
                device = runs["core"][0]["device"]
                found[shape, method] = compared(runs)
                one = found[shape, method]
                print(
                    f"{shape} {method}: {one['faster']:.2f} times as fast, {one['memory']:.0%} of the memory, losses within "
                    f"{one['loss_difference']:.1e}",
                    file=sys.stderr,
                )
    print(as_markdown(found, device, options))


def _run(side: str, method: str, shape: str, folder: Path) -> dict[str, Any]:
    module = [sys.executable, "-m", "benchmarks.train_throughput", *sys.argv[1:]]
    command = [*module, "--one", side, method, shape, "--folder", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{side} {method} {shape} failed:\n{result.stderr[-4000:]}")
    return json.loads(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
