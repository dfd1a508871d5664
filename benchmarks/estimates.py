"""Are the dry run's memory and time what a training takes? Trains models of several sizes for a few steps and compares.

    python -m benchmarks.estimates                 # the table of docs/estimates.md, about ten minutes on two cores
    python -m benchmarks.estimates --only lora     # the cases whose name contains this

Each case is a training in a process of its own. Memory is the peak of the whole process (on a GPU, of what torch allocated).
Time is of the steps alone; loading is not estimated. The estimate takes its speed from a short multiplication.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import SHAPES, SHIPPED, TOKENIZER, make_rows

SIZES: dict[str, dict[str, Any]] = {
    "11M": {
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "100M": SHAPES["small"],
    "0.5B": SHAPES["qwen2.5-0.5b"],
}
CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "tiny ipo lora": ("tiny", "ipo", "64/32", {}),
    "tiny kto full": ("tiny", "kto", "64/32", {"use_lora": False}),
    "11M ipo lora": ("11M", "ipo", "128/64", {}),
    "11M cpo full": ("11M", "cpo", "128/64", {"use_lora": False}),
    "100M ipo lora": ("100M", "ipo", "128/64", {}),
    "100M kto lora": ("100M", "kto", "256/128", {}),
    "100M cpo lora": ("100M", "cpo", "256/128", {"gradient_checkpointing": True}),
    "100M ipo full": ("100M", "ipo", "128/64", {"use_lora": False}),
    "0.5B ipo lora": ("0.5B", "ipo", "64/64", {}),
    "0.5B kto lora checkpointing": ("0.5B", "kto", "128/64", {"gradient_checkpointing": True}),
    "0.5B cpo lora": ("0.5B", "cpo", "128/64", {}),
}
STEPS = 6
WARM_UP_STEPS = 1


def make_model(folder: Path, name: str) -> Path:
    """A model with random weights and the tokenizer that ships, or the model that ships."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    if name == "tiny":
        return SHIPPED / "models" / "tafdil" / "tiny-arabic-qwen-2"
    if not folder.exists():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES[name], max_position_embeddings=2048))
        model.save_pretrained(folder, max_shard_size="4GB")
        AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    return folder


def config_of(case: str, folder: Path, steps: int) -> Any:
    from trainer_core.config import CONFIG_OF

    size, method, shape, changes = CASES[case]
    prompt, answer = map(int, shape.split("/"))
    kind: Any = CONFIG_OF[method]
    rows = folder / f"{method}-{shape.replace('/', '-')}.jsonl"
    if not rows.exists():
        make_rows(rows, method, rows=4 * STEPS, prompt_tokens=prompt, answer_tokens=answer)
    fields: dict[str, Any] = {
        "model_name": str(make_model(folder / size, size)),
        "dataset_path": str(rows),
        "output_dir": str(folder / "out"),
        "apply_chat_template": False,
        "gradient_checkpointing": False,
        "max_prompt_length": 2 * prompt,
        "max_length": 2 * (prompt + answer),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "save_steps": 10_000,
    }
    return kind(**{**fields, **changes})


def run_one(case: str, folder: Path) -> dict[str, Any]:
    """One training in this process: its seconds by step and its peak."""
    import torch

    from trainer_core import PreferenceTrainer
    from trainer_core.observer import Observer

    times: list[float] = []

    class Clock(Observer):
        def progress(self, step: int, total_steps: int) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    trainer = PreferenceTrainer(config_of(case, folder, STEPS), observer=Clock())
    trainer.train()
    steps = [later - earlier for earlier, later in pairwise(times)][-(STEPS - WARM_UP_STEPS) :]
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"step_s": sum(steps) / len(steps), "steps_s": steps, "peak_bytes": peak}


def estimate(case: str, folder: Path, measured: dict[str, Any]) -> dict[str, Any]:
    from trainer_core.dry_run import dry_run
    from trainer_core.machines import this_machine

    machine = this_machine()
    whole = dry_run(config_of(case, folder, STEPS), machine)
    return {
        "bytes": whole["memory"]["bytes"],
        "step_s": whole["time"]["seconds"] / STEPS,
        "parts": whole["memory"]["parts"],
        "flops_per_s": whole["time"]["flops"] / STEPS / measured["step_s"],
        "speed": machine.flops_per_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one, options.folder)))
        return
    lines = [
        "| training | memory, GiB | estimate | measured / estimate | s a step | estimate | measured / estimate |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as place:
        for case in [case for case in CASES if options.only in case]:
            config_of(case, Path(place), STEPS)
            command = [sys.executable, "-m", "benchmarks.estimates", "--one", case, "--folder", place]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                sys.exit(f"{case} failed:\n{result.stderr[-3000:]}")
            measured = json.loads(result.stdout.splitlines()[-1])
            found = estimate(case, Path(place), measured)
            print(case, json.dumps(found), file=sys.stderr)
            memory, expected = measured["peak_bytes"] / 2**30, found["bytes"] / 2**30
            lines.append(
                f"| {case}, {CASES[case][2]} | {memory:.2f} | {expected:.2f} | {memory / expected:.2f} | "
                f"{measured['step_s']:.2f} | {found['step_s']:.2f} | {measured['step_s'] / found['step_s']:.2f} |"
            )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
