"""Shows what the demo's runs teach the shipped model: the manner of an answer, not a trait that goes with it.

python -m benchmarks.demo_proof --out build/demo_proof.json    # three methods, five shuffles each, on two cores

Each method trains as `tafdil demo` does. Then, on the held-out pairs:

- margin accuracy: share of pairs with a positive margin β · (log-ratio of chosen − log-ratio of rejected), ties a half;
- counter-sets: of each trait that differs within pairs, the share of the mean margin that is left when the answers exchange
  it or go without it (`trainer_core.counter_sets`), compared with the same pairs as they are; for `opposite_rows`, the mean
  margin of those rows compared with that of all. A new spelling costs margin by itself: the control applies it to pairs
  whose answers have the trait in equal measure;
- shuffled labels: the same run on training rows whose preferences are random, where the accuracy should be about a half;
- facts: share of distinct held-out prompts whose fact stands in the greedy answer of the base, and of the trained model.
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from jobs.places import SHIPPED_DATA_DIR, model_places
from jobs.settings import Settings
from jobs.spec import library_config, read_spec
from tafdil.demo import SPECS
from trainer_core.config import SETTINGS_OF
from trainer_core.counter_sets import CounterKind, Pair, counter_set, without
from trainer_core.preference_trainer import PreferenceTrainer
from trainer_core.reference import model_of, side_of
from trainer_core.row_rules import comparable
from trainer_core.samples import answer
from trainer_core.scoring import Scores, score, share_positive
from trainer_core.traits import TRAITS, WORD, Trait, label_auc, pair_share

Row = dict[str, Any]
NEW_TOKENS = 64
# The mean margin of fewer rows says little: such a counter-set is shown, but never named as the smallest.
FEWEST_ROWS = 10
# Methods whose loss takes log-ratios per token.


@dataclass(frozen=True)
class Left:
    """What is left of the margin on one counter-set; None where there are no rows, or no positive margin to compare with.

    `control_share` is what is left when answers that have the trait in equal measure go without it: new spelling alone costs
    that much, where the trait could tell nothing. Only for `made_equal`.
    """

    trait: str
    kind: CounterKind
    rows: int
    left_out: int
    share: float | None
    margin_accuracy: float | None
    control_rows: int
    control_share: float | None


@dataclass(frozen=True)
class Proof:
    """One method's run. `facts_before` and `facts_after` are None if the held-out rows name no fact."""

    method: str
    rows: int
    margin_accuracy: float
    mean_margin: float
    accuracy_before: float
    accuracy_after: float
    counter_sets: list[Left]
    facts_before: float | None
    facts_after: float | None
    shuffled: list[float]
    """Margin accuracy after training on shuffled labels, by seed."""

    @property
    def smallest(self) -> Left | None:
        known = [left for left in self.counter_sets if left.share is not None and left.rows >= FEWEST_ROWS]
        return min(known, key=lambda left: left.share or 0.0, default=None)


class HeldOut:
    """The held-out pairs, and the margins that a trained model gives pairs."""

    def __init__(self, trainer: PreferenceTrainer, rows: Sequence[Row] | None = None) -> None:
        self._trainer = trainer
        self._config = trainer.config
        self._reference = trainer._reference_for_scoring()
        self.rows = list(rows or rows_of("pairs_held_out"))
        self.pairs = [Pair(row["prompt"], row["chosen"], row["rejected"]) for row in self.rows]
        self.scores = self._scores(self.pairs)
        self.margins = self._margins(self.scores)

    def margins_of(self, pairs: Sequence[Pair]) -> list[float]:
        """Margins of other pairs. Equal answers, which no data set may have, have none."""
        differing = [place for place, pair in enumerate(pairs) if pair.chosen != pair.rejected]
        found = [0.0] * len(pairs)
        if differing:
            margins = self._margins(self._scores([pairs[place] for place in differing]))
            for place, margin in zip(differing, margins, strict=True):
                found[place] = margin
        return found

    def accuracies(self) -> tuple[float, float]:
        """Preference accuracy before and after training."""
        chosen, rejected = self.scores["chosen"], self.scores["rejected"]
        before = chosen.ref_logps / chosen.tokens - rejected.ref_logps / rejected.tokens
        return accuracy(before.tolist()), accuracy((chosen.avg_logps - rejected.avg_logps).tolist())

    def facts(self) -> tuple[float | None, float | None]:
        """Share of distinct prompts whose fact is in the greedy answer, before and after training."""
        if "fact" not in self.rows[0]:
            return None, None
        renderer = self._trainer.data_loader.renderer
        facts = {comparable(row["prompt"]): row["fact"] for row in self.rows}
        prompts = list({comparable(row["prompt"]): row["prompt"] for row in self.rows}.values())
        after = answer(self._trainer.model, renderer, prompts, NEW_TOKENS)
        with side_of(self._reference):
            before = answer(model_of(self._reference), renderer, prompts, NEW_TOKENS)
        has = [[has_words(one.response, facts[comparable(one.prompt)]) for one in side] for side in (before, after)]
        return mean(has[0]), mean(has[1])

    def _scores(self, pairs: Sequence[Pair]) -> dict[str, Scores]:
        rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
        encoded: dict[int, Row] = {}
        for row in self._trainer.data_loader.encoded(rows):
            # KTO's rows have one answer each; both of a pair have its number.
            own = {("chosen_ids" if row["label"] else "rejected_ids"): row["completion_ids"]} if "label" in row else {}
            encoded.setdefault(row["row"], {}).update(row | own)
        assert len(encoded) == len(pairs), "the limits of the demo leave no pair out"
        ordered = [encoded[number] for number in range(1, len(pairs) + 1)]
        answers = {side: [row[f"{side}_ids"] for row in ordered] for side in ("chosen", "rejected")}
        prompts = [row["prompt_ids"] for row in ordered]
        return score(self._trainer.model, self._reference, prompts, answers, self._config.per_device_eval_batch_size)

    def _margins(self, scores: dict[str, Scores]) -> list[float]:
        chosen, rejected = (scores[side].rewards(self._config.beta, self._config.reward) for side in ("chosen", "rejected"))
        return (chosen - rejected).tolist()


def rows_of(name: str) -> list[Row]:
    """The rows of a shipped file."""
    return [json.loads(line) for line in (SHIPPED_DATA_DIR / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def train(method: str, data: Path, folder: Path, *, eval_file: Path | None = None, **changes: Any) -> PreferenceTrainer:
    """Trains as the demo's job does, but for the given data and changes of its spec."""
    spec = read_spec({**SPECS[method], "dataset_path": "train.jsonl", **changes}).model_dump(mode="json")
    places = {
        "dataset_path": str(data),
        "eval_dataset_path": str(eval_file or SHIPPED_DATA_DIR / "pairs_held_out.jsonl"),
        "output_dir": str(folder),
    }
    trainer = PreferenceTrainer(library_config(spec, places), locate=model_places(Settings(), spec).__getitem__)
    # transformers prints its metrics; standard output is for the tables.
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return trainer


def training_rows(method: str) -> list[Row]:
    return rows_of("kto_train" if SETTINGS_OF[method].rows == "labels" else "pairs_train")


def shuffled_rows(rows: Sequence[Row], seed: int) -> list[Row]:
    """Rows without a preference: the answers of a random half of the pairs change places, or labels are dealt anew."""
    rng = random.Random(seed)
    if "label" in rows[0]:
        labels = rng.sample([row["label"] for row in rows], len(rows))
        return [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    swapped = set(rng.sample(range(len(rows)), len(rows) // 2))
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if place in swapped else row
        for place, row in enumerate(rows)
    ]


def chosen_has_more(trait: Trait, rows: Sequence[Row]) -> bool:
    """Whether the preferred answers of the training rows have more of a trait, rather than less."""

    def measured(side: str) -> list[float]:
        return [trait.measure(row["prompt"], row[side]) for row in rows]

    if "label" in rows[0]:
        share = label_auc(measured("completion"), [row["label"] for row in rows])
    else:
        share = pair_share(measured("chosen"), measured("rejected"))
    return share is not None and share >= 0.5


def left_on(trait: Trait, held_out: HeldOut, train_rows: Sequence[Row]) -> Left | None:
    """What is left of the margin on the trait's counter-set; None if no held-out pair differs in the trait."""
    if all(trait.measure(pair.prompt, pair.chosen) == trait.measure(pair.prompt, pair.rejected) for pair in held_out.pairs):
        return None
    found = counter_set(trait, held_out.pairs, chosen_has_more=chosen_has_more(trait, train_rows))
    own = [held_out.margins[row] for row in found.rows]
    margins, compared = (own, held_out.margins) if found.kind == "opposite_rows" else (held_out.margins_of(found.pairs), own)
    control = control_of(trait, held_out.pairs) if found.kind == "made_equal" else {}
    return Left(
        trait=trait.name,
        kind=found.kind,
        rows=len(found.rows),
        left_out=found.left_out,
        share=ratio(margins, compared),
        margin_accuracy=accuracy(margins) if margins else None,
        control_rows=len(control),
        control_share=ratio(held_out.margins_of(list(control.values())), [held_out.margins[row] for row in control]),
    )


def control_of(trait: Trait, pairs: Sequence[Pair]) -> dict[int, Pair]:
    """By their place, the pairs whose answers have a trait in equal measure, written without it."""
    found: dict[int, Pair] = {}
    for row, (prompt, chosen, rejected) in enumerate(pairs):
        changed = Pair(prompt, without(trait, chosen), without(trait, rejected))
        is_equal = trait.measure(prompt, chosen) == trait.measure(prompt, rejected) > 0
        if is_equal and WORD.search(changed.chosen) and WORD.search(changed.rejected):
            found[row] = changed
    return found


def ratio(values: Sequence[float], compared: Sequence[float]) -> float | None:
    """The mean of values as a share of another; None if there are none, or the other is not positive."""
    return mean(values) / mean(compared) if values and mean(compared) > 0 else None


def proof_of(method: str, changes: dict[str, Any]) -> Proof:
    """Trains one method and measures; `shuffled` is left empty."""
    rows = training_rows(method)
    with tempfile.TemporaryDirectory() as folder:
        held_out = HeldOut(train(method, written(rows, folder), Path(folder) / "output", **changes))
        before, after = held_out.accuracies()
        facts_before, facts_after = held_out.facts()
        return Proof(
            method=method,
            rows=len(held_out.pairs),
            margin_accuracy=accuracy(held_out.margins),
            mean_margin=mean(held_out.margins),
            accuracy_before=before,
            accuracy_after=after,
            counter_sets=[left for trait in TRAITS if (left := left_on(trait, held_out, rows))],
            facts_before=facts_before,
            facts_after=facts_after,
            shuffled=[],
        )


def shuffled_accuracy(method: str, seed: int, changes: dict[str, Any]) -> float:
    """Margin accuracy after training on shuffled labels. Evaluations on the way, which change no weights, are left out."""
    with tempfile.TemporaryDirectory() as folder:
        path = written(shuffled_rows(training_rows(method), seed), folder)
        quick = {**changes, "eval_on_start": False, "eval_steps": 10_000}
        return accuracy(HeldOut(train(method, path, Path(folder) / "output", **quick)).margins)


def written(rows: Sequence[Row], folder: str) -> Path:
    """A file of rows in a folder."""
    path = Path(folder) / "train.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def measured(methods: Sequence[str], seeds: int, changes: dict[str, Any], processes: int) -> list[Proof]:
    """The proofs of methods; their runs are spread over this many processes, with one thread each."""
    if processes == 1:
        return [
            replace(proof_of(method, changes), shuffled=[shuffled_accuracy(method, 1 + i, changes) for i in range(seeds)])
            for method in methods
        ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        proofs = [pool.submit(proof_of, method, changes) for method in methods]
        shuffled = [[pool.submit(shuffled_accuracy, method, 1 + i, changes) for i in range(seeds)] for method in methods]
        return [
            replace(proof.result(), shuffled=[each.result() for each in own])
            for proof, own in zip(proofs, shuffled, strict=True)
        ]


def has_words(text: str, words: str) -> bool:
    """Whether words stand in a text, whole and one after the other."""
    wanted, found = WORD.findall(words), WORD.findall(text)
    return any(found[place : place + len(wanted)] == wanted for place in range(len(found)))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def accuracy(margins: Sequence[float]) -> float:
    """Share of margins, of which there is at least one, that are positive."""
    share = share_positive(torch.tensor(margins, dtype=torch.float64))
    assert share is not None
    return share


def report(proofs: Sequence[Proof]) -> None:
    """Prints the tables."""
    columns = (
        *("method", "margin accuracy", "mean margin", "preference accuracy", "facts kept", "shuffled labels", "their mean"),
        "smallest margin left",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for proof in proofs:
        smallest = proof.smallest
        cells = (
            proof.method.upper(),
            f"{proof.margin_accuracy:.3f} of {proof.rows}",
            f"{proof.mean_margin:.3g}",
            f"{proof.accuracy_before:.3f} → {proof.accuracy_after:.3f}",
            f"{_shown(proof.facts_before)} → {_shown(proof.facts_after)}",
            ", ".join(f"{accuracy:.3f}" for accuracy in proof.shuffled) or "–",
            f"{mean(proof.shuffled):.3f}" if proof.shuffled else "–",
            f"{_shown(smallest.share)} ({smallest.trait}, {smallest.kind}, {smallest.rows} rows)" if smallest else "–",
        )
        print(f"| {' | '.join(cells)} |")
    print(
        "\nCounter-sets: share of the mean margin that is left, margin accuracy, rows; in brackets the share where the same"
    )
    print("change of spelling could tell nothing, and rows\n")
    print(f"| trait | kind | {' | '.join(proof.method.upper() for proof in proofs)} |\n|{'---|' * (2 + len(proofs))}")
    for trait in TRAITS:
        found = [next((left for left in proof.counter_sets if left.trait == trait.name), None) for proof in proofs]
        present = next(filter(None, found), None)
        if present:
            print(f"| {trait.name} | {present.kind} | {' | '.join(_cell(left) if left else '–' for left in found)} |")


def _cell(left: Left) -> str:
    control = f" ({_shown(left.control_share)}, {left.control_rows})" if left.control_rows else ""
    return f"{_shown(left.share)}, {_shown(left.margin_accuracy)}, {left.rows}{control}"


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file in which to keep the figures, as JSON")
    parser.add_argument("--methods", nargs="+", choices=list(SPECS), default=list(SPECS))
    parser.add_argument("--seeds", type=int, default=5, help="runs with shuffled labels for each method")
    parser.add_argument("--max-steps", type=int, help="fewer steps than the demo's, to try the benchmark itself")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    changes = {"max_steps": options.max_steps} if options.max_steps else {}
    began = time.perf_counter()
    proofs = measured(options.methods, options.seeds, changes, options.processes)
    report(proofs)
    print(f"\n{time.perf_counter() - began:.0f} seconds")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        smallest = {proof.method: proof.smallest.trait if proof.smallest else None for proof in proofs}
        found = [{**asdict(proof), "smallest": smallest[proof.method]} for proof in proofs]
        options.out.write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
