"""Do the three methods train a 7B-shaped model in 4-bit with LoRA on this machine's GPU, and at what cost?

    python benchmarks/gpu_check.py                       # Qwen2.5-7B's shape: about 20 GiB of disk, 16 GiB of GPU memory
    python benchmarks/gpu_check.py --shape qwen2.5-0.5b --no-4bit
    python benchmarks/gpu_check.py --shape tiny          # anywhere, on a CPU too

The weights are random, so that nothing is fetched: memory and speed depend on shapes alone, and losses say nothing. Each
method runs in a process of its own; the table is printed, and with `--write docs/gpu.md` put there.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

METHODS = ("kto", "ipo", "cpo")
# From the models' published configurations.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-7b": {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "qwen2.5-0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
START = "<!-- the last run -->"
SHIPPED = Path(__file__).resolve().parents[1] / "tafdil" / "shipped"
TOKENIZER = SHIPPED / "models" / "tafdil" / "tiny-arabic-qwen"


def make_model(folder: Path, shape: str) -> None:
    """Writes a model of a shape with random bfloat16 weights, and the tokenizer that ships."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPES[shape], max_position_embeddings=2048))
    model.save_pretrained(folder, max_shard_size="4GB")
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)


def make_rows(path: Path, method: str, options: argparse.Namespace) -> None:
    """Rows whose prompts and answers have about so many tokens as asked, from words of the shipped data."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    lines = (SHIPPED / "data" / "pairs_train.jsonl").read_text(encoding="utf-8").splitlines()
    words = [word for line in lines for word in json.loads(line)["chosen"].split()]
    rng = random.Random(0)

    def text(tokens: int) -> str:
        found: list[str] = []
        while len(tokenizer(" ".join(found))["input_ids"]) < tokens:
            found += rng.sample(words, 4)
        return " ".join(found)

    with path.open("w", encoding="utf-8") as file:
        for i in range(options.batch * options.steps):
            # Room for the template's own tokens.
            row: dict[str, Any] = {"prompt": text(options.prompt_tokens - 24)}
            answers = [text(options.answer_tokens - 8) for _ in range(2)]
            if method == "kto":
                row |= {"completion": answers[0], "label": i % 2 == 0}
            else:
                row |= {"chosen": answers[0], "rejected": answers[1]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def run_one(method: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Trains with one method and measures it. The first two steps are warm-up."""
    import torch

    from trainer_core import CPOConfig, IPOConfig, KTOConfig, PreferenceTrainer
    from trainer_core.observer import Observer

    class Clock(Observer):
        def __init__(self) -> None:
            self.times: list[float] = []
            self.losses: list[float] = []

        def progress(self, step: int, total_steps: int) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

        def metrics(self, step: int, values: dict[str, float | None]) -> None:
            if values.get("loss") is not None:
                self.losses.append(float(values["loss"] or 0.0))

    rows = folder / f"{method}.jsonl"
    make_rows(rows, method, options)
    kind: Any = {"kto": KTOConfig, "ipo": IPOConfig, "cpo": CPOConfig}[method]
    config = kind(
        model_name=str(folder / "model"),
        dataset_path=str(rows),
        output_dir=str(folder / "out" / method),
        load_in_4bit=not options.no_4bit,
        gradient_checkpointing=True,
        max_prompt_length=options.prompt_tokens,
        max_length=options.prompt_tokens + options.answer_tokens,
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=1,
        max_steps=options.steps,
        logging_steps=1,
        save_steps=10_000,
    )
    clock = Clock()
    trainer = PreferenceTrainer(config, observer=clock)
    started = time.perf_counter()
    trainer.load()
    loaded_s = time.perf_counter() - started
    trainer.train()
    seconds = [later - earlier for earlier, later in zip(clock.times[:-1], clock.times[1:], strict=True)][2:]
    report = trainer.data_loader.report()
    tokens = report["train"]["total_tokens"] / report["train"]["rows"] * options.batch
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "precision": trainer.precision,
        "load_s": round(loaded_s, 1),
        "step_s": round(median(seconds), 3),
        "tokens_per_s": round(tokens / median(seconds)),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None,
        "first_loss": round(clock.losses[0], 4),
        "last_loss": round(clock.losses[-1], 4),
    }


def as_markdown(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """The run as a page shows it."""
    first = next(iter(found.values()))
    weights = "bf16" if options.no_4bit else "4-bit NF4"
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES if find_spec(name))
    command = "python benchmarks/gpu_check.py " + " ".join(sys.argv[1:])
    lines = [
        f"{first['device']}, {datetime.now(UTC):%Y-%m-%d}; {options.shape} with random weights in {weights} and LoRA, "
        f"arithmetic in {first['precision']}; batches of {options.batch}, {options.prompt_tokens}/{options.answer_tokens} "
        f"tokens, {options.steps} steps; {versions}. Made with `{command.strip()}`.",
        "",
        "| method | load, s | step, s (median) | tokens/s | peak GPU memory, GiB | first loss | last loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, one in found.items():
        peak = "" if one["peak_gib"] is None else one["peak_gib"]
        cells = (
            method.upper(),
            one["load_s"],
            one["step_s"],
            one["tokens_per_s"],
            peak,
            one["first_loss"],
            one["last_loss"],
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-7b")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps, at least 4")
    parser.add_argument("--batch", type=int, default=4, help="rows or pairs a step, at least 2")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--no-4bit", action="store_true", help="hold the frozen weights in bf16 (fp32 on a CPU)")
    parser.add_argument("--write", type=Path, help="a page whose last run is replaced, e.g. docs/gpu.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one, options.folder, options)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_model(folder / "model", options.shape)
        found: dict[str, dict[str, Any]] = {}
        for method in options.methods:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", method, "--folder", str(folder)]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if result.returncode:
                sys.exit(f"{method} failed with exit status {result.returncode}")
            found[method] = json.loads(result.stdout.splitlines()[-1])
            print(f"{method}: {found[method]}", file=sys.stderr)
    text = as_markdown(found, options)
    print(text)
    if options.write:
        head = options.write.read_text(encoding="utf-8").partition(START)[0]
        options.write.write_text(f"{head}{START}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
