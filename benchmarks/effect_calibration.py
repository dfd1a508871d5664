"""Trains the shipped model many times, to set the bounds of `trainer_core.effect` and `trainer_core.forecast`.

python -m benchmarks.effect_calibration --out build/effect.json     # trains (about 20 minutes on two cores), and prints
python -m benchmarks.effect_calibration --read build/effect.json    # prints again

A run is labelled by what its model says, without its KL divergence: greedy answers to the prompts of 96 held-out pairs, next
to those of the base. `hardly_changed`: at most 1 in 10 differs. `collapsed`: at least half are broken: they do not end
within the limit, repeat more than half of themselves, have more than a fifth of their letters in a foreign script, or cost
the base more than 4 nats per token. `changed`: the rest.
"""

import argparse
import json
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from jobs.places import SHIPPED_DATA_DIR
from jobs.settings import SHIPPED_MODELS_DIR
from trainer_core import PreferenceTrainer, effect
from trainer_core.config import CONFIG_OF, HEADLINE, SETTINGS_OF
from trainer_core.errors import NonfiniteLoss
from trainer_core.observer import Observer
from trainer_core.reference import FrozenView, model_of, side_of
from trainer_core.row_rules import comparable
from trainer_core.samples import Sample, answer, repetition
from trainer_core.schedule import learning_rate_sum
from trainer_core.scoring import score

RATES = (1e-7, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1, 1.0)
LONG_RATES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
HELD_OUT = 96
NEW_TOKENS = 64
MAX_UNCHANGED_DIFFERING = 0.1
MIN_COLLAPSED_BROKEN = 0.5
MAX_REPETITION = 0.5
MAX_FOREIGN = 0.2
MAX_BASE_NLL = 4.0


@dataclass(frozen=True)
class Run:
    """A run, its measured effect, and what its model says; NaN if it failed."""

    method: str
    use_lora: bool
    scaling: float
    steps: int
    seed: int
    learning_rate: float
    movement: float
    """Sum of the steps' learning rates, times LoRA's scaling."""
    differing: float = math.nan
    broken: float = math.nan
    mean_kl: float = math.nan
    shift: float = math.nan
    margin: float = math.nan
    signs: dict[str, float] | None = None

    @property
    def label(self) -> str | None:
        """By what the model says; None if the run failed."""
        if math.isnan(self.differing):
            return None
        if self.broken >= MIN_COLLAPSED_BROKEN:
            return "collapsed"
        return "hardly_changed" if self.differing <= MAX_UNCHANGED_DIFFERING else "changed"


class Silent(Observer):
    def warning(self, code: str, message: str) -> None: ...

    def effect(self, verdict: Any, evidence: dict[str, Any]) -> None: ...


def settings() -> Iterator[Any]:
    """Each run's method and the fields of its config."""
    for method in HEADLINE:
        for use_lora in (True, False):
            for steps, seed, beta, rates in ((4, 1, 0.1, RATES), (20, 2, 0.1, RATES), (60, 3, 0.5, LONG_RATES)):
                for rate in rates:
                    common = {"use_lora": use_lora, "max_steps": steps, "seed": seed, "beta": beta, "learning_rate": rate}
                    yield method, common
    for rate in LONG_RATES:
        weak = {"lora_r": 4, "lora_alpha": 2.0, "max_steps": 20, "seed": 4, "learning_rate": rate}
        yield "ipo", weak


def train(method: str, fields: dict[str, Any]) -> Run:
    """Trains and labels one run."""
    rows = "kto" if SETTINGS_OF[method].rows == "labels" else "pairs"
    with tempfile.TemporaryDirectory() as folder:
        held_out = Path(folder) / "held_out.jsonl"
        # The rows of the file are in a random order.
        pairs = (SHIPPED_DATA_DIR / "pairs_held_out.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        held_out.write_text("".join(pairs[:HELD_OUT]), encoding="utf-8")
        config: Any = CONFIG_OF[method](
            model_name=str(SHIPPED_MODELS_DIR / "tafdil" / "tiny-arabic-qwen-2"),
            dataset_path=str(SHIPPED_DATA_DIR / f"{rows}_train.jsonl"),
            eval_dataset_path=str(held_out),
            output_dir=f"{folder}/output",
            learning_rate_cap=None,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=32,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
            eval_on_start=False,
            eval_steps=10_000,
            logging_steps=1000,
            **fields,
        )
        scaling = config.lora_alpha / config.lora_r if config.use_lora else 1.0
        known = {
            "method": method,
            "use_lora": config.use_lora,
            "scaling": scaling,
            "steps": config.max_steps,
            "seed": config.seed,
            "learning_rate": config.learning_rate,
            "movement": learning_rate_sum(config, config.max_steps) * scaling,
        }
        trainer = PreferenceTrainer(config, observer=Silent())
        try:
            trainer.train()
        except NonfiniteLoss:
            return Run(**known)
        return Run(**known, **_labelled(trainer), **_measured(trainer))


def _measured(trainer: PreferenceTrainer) -> dict[str, Any]:
    assert trainer.effect
    evidence = trainer.effect.evidence
    return {
        "mean_kl": evidence.mean_kl,
        "shift": evidence.shift,
        "margin": evidence.margin.mean if evidence.margin else math.nan,
        "signs": asdict(evidence.samples) if evidence.samples else None,
    }


@torch.no_grad()
def _labelled(trainer: PreferenceTrainer) -> dict[str, Any]:
    renderer = trainer.data_loader.renderer
    prompts = list({comparable(row["prompt"]): row["prompt"] for row in trainer.data_loader.validation}.values())
    base = FrozenView(trainer.model) if trainer.config.use_lora else trainer._reference_for_scoring()
    after = answer(trainer.model, renderer, prompts, NEW_TOKENS)
    with side_of(base):
        before = answer(model_of(base), renderer, prompts, NEW_TOKENS)
        answers = {"answer": [one.response_ids or [renderer.tokenizer.eos_token_id] for one in after]}
        scores = score(model_of(base), None, [renderer.prompt_ids(prompt) for prompt in prompts], answers, 32)["answer"]
    known = {script for one in (*prompts, *(each.response for each in before)) for script in effect.scripts(one)}
    broken = [_is_broken(one, nll, known) for one, nll in zip(after, (-scores.avg_logps).tolist(), strict=True)]
    differing = [one.response != other.response for one, other in zip(after, before, strict=True)]
    return {"differing": sum(differing) / len(prompts), "broken": sum(broken) / len(prompts)}


def _is_broken(sample: Sample, base_nll: float, known: set[str]) -> bool:
    found = effect.scripts(sample.response)
    foreign = sum(count for script, count in found.items() if script not in known) / max(1, found.total())
    has_no_end = len(sample.response_ids) >= NEW_TOKENS
    return has_no_end or repetition(sample.response_ids) > MAX_REPETITION or foreign > MAX_FOREIGN or base_nll > MAX_BASE_NLL


def bound(below: Sequence[float], above: Sequence[float]) -> tuple[float, int]:
    """The value between two classes: the geometric midpoint of the widest gap with the fewest values on the wrong side.

    Returns:
        The bound, and the number of values on the wrong side of it.
    """
    values = sorted(value for value in {*below, *above} if value > 0 and math.isfinite(value))
    candidates: list[tuple[int, float, float]] = []
    for low, high in pairwise(values):
        middle = math.sqrt(low * high)
        wrong = sum(value > middle for value in below) + sum(not value > middle for value in above)
        candidates.append((wrong, low / high, middle))
    wrong, _, middle = min(candidates)
    return middle, wrong


def report(runs: Sequence[Run]) -> None:
    """Prints the table and the bounds."""
    columns = "method, weights, steps, learning rate, movement, answers that differ, broken, KL, shift, margin, label"
    print(f"| {' | '.join(columns.split(', '))} |\n|{'---|' * 11}")
    for run in runs:
        weights = f"LoRA × {run.scaling:g}" if run.use_lora else "all"
        numbers = [run.movement, run.differing, run.broken, run.mean_kl, run.shift, run.margin]
        shown = " | ".join(f"{number:.3g}" if math.isfinite(number) else "–" for number in numbers)
        print(
            f"| {run.method.upper()} | {weights} | {run.steps} | {run.learning_rate:g} | {shown} | {run.label or 'failed'} |"
        )
    labelled = [run for run in runs if run.label]
    print()
    for name, few, many in (
        ("hardly", {"hardly_changed"}, {"changed", "collapsed"}),
        ("collapsed", {"hardly_changed", "changed"}, {"collapsed"}),
    ):
        for of, chosen in (
            ("mean_kl", labelled),
            ("shift", labelled),
            ("movement", [run for run in labelled if run.use_lora]),
            ("movement", [run for run in labelled if not run.use_lora]),
        ):
            if not chosen:
                continue
            below = [getattr(run, of) for run in chosen if run.label in few]
            above = [getattr(run, of) for run in chosen if run.label in many]
            value, wrong = bound(below, above)
            weights = "" if of != "movement" else (" (LoRA)" if chosen[0].use_lora else " (all weights)")
            print(
                f"{name} {of}{weights}: {value:.3g}; {wrong} of {len(below) + len(above)} on the wrong side; "
                f"highest below {max(below):.3g}, lowest above {min(above):.3g}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file in which to keep the runs, as JSON")
    parser.add_argument("--read", type=Path, help="print the runs in such a file")
    options = parser.parse_args()
    if options.read:
        report([Run(**run) for run in json.loads(options.read.read_text(encoding="utf-8"))])
        return
    warnings.simplefilter("ignore")
    runs: list[Run] = []
    for method, fields in settings():
        runs.append(train(method, fields))
        if options.out:
            options.out.write_text(json.dumps([asdict(run) for run in runs]), encoding="utf-8")
    report(runs)


if __name__ == "__main__":
    main()
