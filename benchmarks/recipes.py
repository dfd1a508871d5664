"""Runs each recipe on small and large files of rows, with two models and every method, and prints what it did.

python -m benchmarks.recipes --out build/recipes.json     # trains (about half an hour on one idle core), and prints
python -m benchmarks.recipes --read build/recipes.json    # prints again

The models are the one that ships and a larger Qwen3 that this file trains on the same kind of text, for a few minutes. The
rows are new ones: their questions are not those of the held-out pairs, on which every run is measured. Evaluations that
decide nothing are left out.
"""

import argparse
import json
import math
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from jobs.places import SHIPPED_DATA_DIR
from jobs.settings import SHIPPED_MODELS_DIR
from trainer_core import PreferenceTrainer
from trainer_core.config import CONFIG_OF, HEADLINE, METHODS, SETTINGS_OF
from trainer_core.model_size import weights_of
from trainer_core.observer import Observer
from trainer_core.recipes import RECIPES, RecipeName, recipe

EXAMPLES = Path(__file__).parents[1] / "examples"
SHIPPED = SHIPPED_MODELS_DIR / "tafdil" / "tiny-arabic-qwen-2"
ROWS = (60, 200, 1000)
HELD_OUT = 64
SEED = 5


@dataclass(frozen=True)
class Run:
    """A recipe's run, and what it did."""

    model: str
    weights: int
    method: str
    recipe: RecipeName
    rows: int
    learning_rate: float
    steps: int
    effect: str
    decided_by: list[str]
    margin: float
    margin_accuracy: float
    mean_kl: float
    seconds: float


class Quiet(Observer):
    def warning(self, code: str, message: str) -> None: ...

    def effect(self, verdict: Any, evidence: dict[str, Any]) -> None: ...


def plan() -> Iterator[tuple[str, str, int, RecipeName]]:
    """Model, method, rows and recipe of each run: every size for the headline methods, the middle one for the others."""
    for chosen, rows, model in product(RECIPES, (200, 60, 1000), ("shipped", "larger")):
        for method in METHODS:
            if method in HEADLINE or rows == ROWS[1]:
                yield model, method, rows, chosen


def write_rows(folder: Path, rows: int, *, labelled: bool) -> str:
    """A file of rows, generated like those of the sample data."""
    sys.path.insert(0, str(EXAMPLES))
    from arabic_corpus import labelled_rows, preference_pairs

    make = labelled_rows if labelled else preference_pairs
    path = folder / f"{'labels' if labelled else 'pairs'}-{rows}.jsonl"
    found = make(random.Random(SEED), held_out=False, count=rows)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    return str(path)


def make_larger_model(folder: Path, steps: int = 150) -> Path:
    """A Qwen3 of 3 million weights with the shipped tokenizer, trained on text like that of the shipped model."""
    sys.path.insert(0, str(EXAMPLES))
    import torch
    from build_tiny_model import train
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    shape = {"hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen3Config(
        vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=True, **shape, **heads, **ends
    )
    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(config)
    train(model, tokenizer, steps, 32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(model: Path, name: str, wanted: tuple[str, int, RecipeName], folder: Path) -> Run:
    """Trains with a recipe, and measures on held-out pairs."""
    method, rows, chosen = wanted
    held_out = folder / "held_out.jsonl"
    pairs = (SHIPPED_DATA_DIR / "pairs_held_out.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    held_out.write_text("".join(pairs[:HELD_OUT]), encoding="utf-8")
    labelled = SETTINGS_OF[method].rows == "labels"
    weights = weights_of(model)
    fields = recipe(chosen, method, weights=weights, rows=rows, has_validation=True)
    if "early_stopping_patience" not in fields:
        fields |= {"eval_steps": 10_000}
    with tempfile.TemporaryDirectory() as output:
        config = CONFIG_OF[method](
            model_name=str(model),
            dataset_path=write_rows(folder, rows, labelled=labelled),
            eval_dataset_path=str(held_out),
            output_dir=output,
            **{**fields, "eval_on_start": False, "per_device_eval_batch_size": HELD_OUT},
        )
        began = time.monotonic()
        trainer = PreferenceTrainer(config, observer=Quiet())
        trainer.train()
        seconds = time.monotonic() - began
        assert trainer.effect
        evidence = trainer.effect.evidence
        measured = [entry for entry in trainer.trainer.state.log_history if "eval_margin_accuracy" in entry]
    return Run(
        model=name,
        weights=weights or 0,
        method=method,
        recipe=chosen,
        rows=rows,
        learning_rate=config.learning_rate,
        steps=trainer.trainer.state.global_step,
        effect=trainer.effect.verdict,
        decided_by=list(trainer.effect.decided_by),
        margin=evidence.margin.mean if evidence.margin else math.nan,
        margin_accuracy=measured[-1]["eval_margin_accuracy"],
        mean_kl=math.nan if evidence.mean_kl is None else evidence.mean_kl,
        seconds=round(seconds, 1),
    )


def report(runs: list[Run]) -> None:
    """Prints the table."""
    columns = "model, method, rows, recipe, learning rate, steps, effect, margin, margin accuracy, KL per token, seconds"
    print(f"| {' | '.join(columns.split(', '))} |\n|{'---|' * 11}")
    for each in runs:
        numbers = f"{each.margin:.3g} | {each.margin_accuracy:.3f} | {each.mean_kl:.2g} | {each.seconds:.0f}"
        rate = f"{each.learning_rate:g} | {each.steps}"
        effect = each.effect + (f" ({', '.join(each.decided_by)})" if each.decided_by else "")
        shown = f"{each.model} | {SETTINGS_OF[each.method].title} | {each.rows} | {each.recipe} | {rate}"
        print(f"| {shown} | {effect} | {numbers} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file of the runs, as JSON; runs in it are not repeated")
    parser.add_argument("--read", type=Path, help="print the runs in such a file")
    parser.add_argument("--larger", type=Path, help="where the larger model is, or is to be kept")
    parser.add_argument("--only", nargs="*", default=[], help="only the runs of these models, methods, recipes and rows")
    options = parser.parse_args()
    runs: list[Run] = []
    known = options.read or options.out
    if known and known.exists():
        runs = [Run(**each) for each in json.loads(known.read_text(encoding="utf-8"))]
    if not options.read:
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as folder:
            train_all(runs, Path(folder), options)
    report(runs)


def train_all(runs: list[Run], folder: Path, options: argparse.Namespace) -> None:
    """Adds the runs that are missing."""
    larger = options.larger or folder / "larger"
    done = {(each.model, each.method, each.rows, each.recipe) for each in runs}
    for each in plan():
        if each in done or not set(options.only) <= {str(value) for value in each}:
            continue
        model, method, rows, chosen = each
        if model == "larger" and not (larger / "config.json").exists():
            make_larger_model(larger)
        runs.append(run(SHIPPED if model == "shipped" else larger, model, (method, rows, chosen), folder))
        report(runs[-1:])
        sys.stdout.flush()
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps([asdict(one) for one in runs], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
