"""What a report keeps of the rows that stream past: the numbers of every row, and the text of a seeded sample.

A file of any size takes bounded memory: beyond `MEASURED_ROWS` the numbers too are those of a seeded sample.
"""

import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from trainer_core.counter_sets import Pair
from trainer_core.data_report.rules import TRAIT_RULES

MEASURED_ROWS = 200_000
SAMPLED_ROWS = 20_000
SEED = 20_261_129

Kept = TypeVar("Kept")


class Reservoir(Generic[Kept]):
    """A uniform sample of what passes (Vitter's algorithm R); everything, up to `most`."""

    def __init__(self, most: int, seed: int = SEED) -> None:
        self.kept: list[Kept] = []
        self.seen = 0
        self._most = most
        self._random = random.Random(seed)

    def place(self) -> int | None:
        """Where to put the next one with `put`; None: nowhere."""
        self.seen += 1
        if len(self.kept) < self._most:
            return len(self.kept)
        place = self._random.randrange(self.seen)
        return place if place < self._most else None

    def put(self, place: int, kept: Kept) -> None:
        if place == len(self.kept):
            self.kept.append(kept)
        else:
            self.kept[place] = kept


@dataclass(frozen=True, slots=True)
class Single:
    """A prompt, an answer, and whether it is desirable."""

    prompt: str
    completion: str
    label: bool


class Sampled(NamedTuple):
    """A row of the sample: its line, its prompt's key, its text and its variety."""

    line: int
    prompt_key: int
    row: Pair | Single
    variety: str | None


class Numbers(NamedTuple):
    """The traits of one row, in the order of `TRAIT_RULES`.

    Attributes:
        values: of a pair, for each trait 2, 1 or 0: the chosen answer has more of it, equally much, or less. Of a labelled
            row, the traits themselves.
        label: None for pairs.
    """

    prompt_key: int
    values: "bytes | array[float]"
    label: bool | None


def numbers_of(row: Pair | Single, prompt_key: int) -> Numbers:
    """Measures every trait of a row."""
    if isinstance(row, Single):
        values = array("d", [rule.measure(row.prompt, row.completion) for rule in TRAIT_RULES])
        return Numbers(prompt_key, values, row.label)
    return Numbers(prompt_key, bytes([marked(rule.measure, row) for rule in TRAIT_RULES]), None)


def marked(measure: Callable[[str, str], float], pair: Pair) -> int:
    """2 where the chosen answer of a pair has more, 1 where both have equally much, 0 where it has less."""
    chosen, rejected = measure(pair.prompt, pair.chosen), measure(pair.prompt, pair.rejected)
    return 2 if chosen > rejected else 1 if chosen == rejected else 0
