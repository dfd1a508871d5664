"""Shows that a model learns the shortcut that the report names: on planted files, with the shipped small model.

python -m benchmarks.shortcut_proof --out build/shortcut_proof.json    # five runs, one after the other

Each of five kinds of trait from `benchmarks.planted_files` is planted in the shipped pairs, whose two answers change places
at random, so that the tone gives nothing away. The report names the shortcut of the training pairs. Then the model trains
on them by IPO, and held-out pairs with the same plant are scored with each trait exchanged or made equal
(`trainer_core.counter_sets`). The trait whose change leaves the smallest share of the mean margin is what the model learned.
`opposite_rows` are kept but not ranked: they are not an edit, and in rows where a correlated trait points the other way the
planted one mostly does too.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.demo_proof import HeldOut, Left, left_on, rows_of, train
from benchmarks.planted_files import PLANTED, Planted, short_rows_of
from trainer_core.data_report import report_of_rows
from trainer_core.traits import TRAITS, Trait

METHOD = "ipo"
# Kinds that every shipped answer can carry, and whose trait an edit can exchange or remove.
KINDS = ("diacritics", "tatweel", "commas", "emoji", "markdown")
# Seeds of held-out rows, far from those of the files.
_HELD_OUT = 1000
_FEWEST_ROWS = 10


@dataclass(frozen=True)
class Outcome:
    """One planted file: what the report named, and what each change of the held-out pairs left of the margin."""

    kind: str
    strength: float
    named: str
    same: list[str]
    share: float
    margin_accuracy: float
    mean_margin: float
    left: list[Left]
    seconds: float

    @property
    def costliest(self) -> Left | None:
        edits = [each for each in self.left if each.kind != "opposite_rows" and each.rows >= _FEWEST_ROWS]
        known = [each for each in edits if each.share is not None]
        return min(known, key=lambda each: each.share or 0.0, default=None)

    @property
    def is_right(self) -> bool:
        return self.costliest is not None and self.costliest.trait in {self.named, *self.same}


def files() -> list[Planted]:
    """One file of pairs for each of the five kinds."""
    return [next(file for file in PLANTED if (file.kind, file.shape) == (kind, "pairs")) for kind in KINDS]


def planted(file: Planted, name: str, rows: int) -> list[dict[str, Any]]:
    """The first rows of a shipped file with the plant."""
    return short_rows_of(file, [(row["prompt"], row["chosen"], row["rejected"]) for row in rows_of(name)[:rows]])


def outcome(file: Planted, rows: int, held_out_rows: int, changes: dict[str, Any]) -> Outcome:
    """Trains on one planted file and measures."""
    began = time.perf_counter()
    training = planted(file, "pairs_train", rows)
    unseen = planted(replace(file, seed=file.seed + _HELD_OUT), "pairs_held_out", held_out_rows)
    (named, *_) = report_of_rows(training)["shortcuts"]["named"]
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.jsonl" for name in ("train", "held_out")}
        for path, each in zip(paths.values(), (training, unseen), strict=True):
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in each), encoding="utf-8")
        trainer = train(METHOD, paths["train"], Path(folder) / "output", eval_file=paths["held_out"], **changes)
        held_out = HeldOut(trainer, unseen)
        left = [found for trait in TRAITS if differs(trait, unseen) and (found := left_on(trait, held_out, training))]
        margins = held_out.margins
    return Outcome(
        kind=file.kind,
        strength=file.strength,
        named=named["rule"],
        same=named["same"],
        share=named["share"],
        margin_accuracy=sum(margin > 0 for margin in margins) / len(margins),
        mean_margin=sum(margins) / len(margins),
        left=left,
        seconds=time.perf_counter() - began,
    )


def differs(trait: Trait, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether enough pairs differ in a trait to say something about it."""
    differing = sum(
        trait.measure(row["prompt"], row["chosen"]) != trait.measure(row["prompt"], row["rejected"]) for row in rows
    )
    return differing >= _FEWEST_ROWS


def report(outcomes: Sequence[Outcome]) -> None:
    """Prints the table."""
    print(
        "| planted | strength | named first | right in | margin accuracy | margin left without it | costliest edit | next |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for each in outcomes:
        ranked = sorted(
            (
                left
                for left in each.left
                if left.kind != "opposite_rows" and left.share is not None and left.rows >= _FEWEST_ROWS
            ),
            key=lambda left: left.share or 0.0,
        )
        own = next((left for left in ranked if left.trait == each.named), None)
        others = [left for left in ranked if left.trait not in {each.named, *each.same}]
        following = f"{others[0].trait} {others[0].share:.0%}" if others else "–"
        first = each.costliest.trait if each.costliest else "–"
        cells = (each.kind, f"{each.strength:.0%}", each.named, f"{each.share:.0%}", f"{each.margin_accuracy:.3f}")
        print(f"| {' | '.join(cells)} | {own.share if own else 0:.0%} | {first} | {following} |")
    print(f"\n{sum(each.is_right for each in outcomes)} of {len(outcomes)} named traits cost the most margin")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file in which to keep the figures, as JSON")
    parser.add_argument("--rows", type=int, default=400, help="training pairs of each file")
    parser.add_argument("--held-out-rows", type=int, default=80)
    parser.add_argument("--batch", type=int, default=16, help="pairs in a step")
    parser.add_argument("--max-steps", type=int, help="fewer steps than the demo's, to try the benchmark itself")
    parser.add_argument("--files", type=int, default=5)
    options = parser.parse_args(arguments)
    changes = {"max_steps": options.max_steps} if options.max_steps else {}
    # The trait is what is measured, not the way there.
    changes |= {"per_device_train_batch_size": options.batch, "eval_on_start": False, "eval_steps": 10_000}
    outcomes: list[Outcome] = []
    for file in files()[: options.files]:
        outcomes.append(outcome(file, options.rows, options.held_out_rows, changes))
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            found = [{**asdict(each), "costliest": each.costliest and each.costliest.trait} for each in outcomes]
            options.out.write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")
    report(outcomes)


if __name__ == "__main__":
    main()
