"""The shortcuts of a run's rows: traits that alone separate the preferred answer from the other in most rows. Torch-free.

A run may have learned such a trait rather than what the rows are about. `RunReview` measures whether it did.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from trainer_core.counter_sets import Pair
from trainer_core.data_report.judging import judge
from trainer_core.data_report.rows_kept import Sampled, Single, numbers_of
from trainer_core.row_rules import Row, text_of
from trainer_core.traits import TRAITS, Trait

MOST = 3
"""At most this many are named, the strongest first."""
_ROWS = 512
TRAIT_OF = {trait.name: trait for trait in TRAITS}


@dataclass(frozen=True)
class Shortcut:
    """A trait that separates the preferred answers from the others.

    Attributes:
        chosen_has_more: whether the preferred answers have more of it, rather than less.
        share: share of the rows in which that rule is right; a tie counts a half.
    """

    trait: Trait
    chosen_has_more: bool
    share: float


def named(rows: Sequence[Row], seed: int) -> list[Shortcut]:
    """The shortcuts of training rows, as the data report names them, from at most 512 of the rows, drawn by seed.

    Shortcuts that are a single word are left out: no rule could take the word from the answers.
    """
    drawn = random.Random(f"shortcuts {seed}").sample(range(len(rows)), min(_ROWS, len(rows)))
    sample = [_sampled(place, rows[place]) for place in sorted(drawn)]
    if not sample:
        return []
    verdict = judge([numbers_of(each.row, each.prompt_key) for each in sample], sample)
    traits = [each for each in verdict.named if each.rule.name in TRAIT_OF]
    return [Shortcut(TRAIT_OF[each.rule.name], each.more, each.share) for each in traits][:MOST]


def _sampled(place: int, row: Row) -> Sampled:
    prompt = text_of(row["prompt"])
    if "label" in row:
        return Sampled(place, hash(prompt), Single(prompt, text_of(row["completion"]), row["label"]), None)
    return Sampled(place, hash(prompt), Pair(prompt, text_of(row["chosen"]), text_of(row["rejected"])), None)
