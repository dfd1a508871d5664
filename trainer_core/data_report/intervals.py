"""Intervals for the share of rows in which a rule is right, when rows of one prompt depend on each other.

A share is a mean of marks (right 1, tied 1/2, wrong 0), or an AUC. Its variance is that of the sums by prompt, so rows of
one prompt count as much as they tell: fully if they differ like rows of other prompts, as one row if they always agree.
From the variance follows the number of independent rows that would be as certain, and from that the interval by Wilson's
score method, with a quantile of Student's t for the number of prompts. Few wrong rows say little about how the rows of a
prompt depend on each other, and none say nothing, so no rule counts for more rows than the median design effect leaves.
Hence no rule is surer than one that is right in every row.

All intervals of a report hold together: each has the level 1 - (1 - LEVEL) / (number of rules), two-sided, so that both
directions of every rule are covered (Bonferroni).
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist

LEVEL = 0.95
"""Probability that all intervals of a report hold at once."""


@dataclass(frozen=True)
class Measured:
    """A share of rows, before its interval.

    Attributes:
        share: between 0 and 1.
        rows: rows behind it; for an AUC, the number of independent rows that would be as certain.
        prompts: distinct prompts among them.
        variance: of the share, by prompt.
        design_effect: that variance in relation to the one of independent rows; 1 if every row is alike.
        rows_a_prompt: rows of each prompt, on average.
    """

    share: float
    rows: float
    prompts: int
    variance: float
    design_effect: float
    rows_a_prompt: float


def share_of_pairs(marks: Sequence[int], prompts: Sequence[Hashable]) -> Measured:
    """The share of pairs in which the preferred side has more.

    Args:
        marks: 2 where it has more, 1 where both have equally much, 0 where it has less.
        prompts: the prompt of each pair, by any key.
    """
    rows = len(marks)
    counts = Counter(marks)
    share = (2 * counts[2] + counts[1]) / (2 * rows)
    sums: dict[Hashable, float] = {}
    for mark, prompt in zip(marks, prompts, strict=True):
        sums[prompt] = sums.get(prompt, 0.0) + mark / 2 - share
    alone = sum(count * (mark / 2 - share) ** 2 for mark, count in counts.items()) / rows**2
    return _measured(share, rows, [each / rows for each in sums.values()], alone, rows)


def auc(values: Sequence[float], labels: Sequence[bool], prompts: Sequence[Hashable]) -> Measured | None:
    """The share of all (desirable, undesirable) couples of rows in which the desirable one has more; ties count a half.

    The variance is DeLong's, summed by prompt (Obuchowski 1997). None if one class is empty.
    """
    desirable = Counter(value for value, label in zip(values, labels, strict=True) if label)
    undesirable = Counter(value for value, label in zip(values, labels, strict=True) if not label)
    many, others = desirable.total(), undesirable.total()
    if not many or not others:
        return None
    # For each value: the share of the other class below it, ties a half; for an undesirable row, of desirable rows above.
    below = _shares_below(desirable, undesirable)
    above = {value: 1 - share for value, share in _shares_below(undesirable, desirable).items()}
    share = sum(count * below[value] for value, count in desirable.items()) / many
    sums: dict[Hashable, float] = {}
    alone = 0.0
    for value, label, prompt in zip(values, labels, prompts, strict=True):
        part = (below[value] - share) / many if label else (above[value] - share) / others
        sums[prompt] = sums.get(prompt, 0.0) + part
        alone += part * part
    # For a trait without any effect, an AUC is as certain as a share of this many independent rows.
    rows = 3 * many * others / (many + others)
    return _measured(share, rows, list(sums.values()), alone, len(values))


def differing(values: Sequence[float], labels: Sequence[bool]) -> float:
    """The share of all couples of a desirable and an undesirable row that differ."""
    sides = [Counter(value for value, label in zip(values, labels, strict=True) if label == side) for side in (True, False)]
    ties = sum(count * sides[1][value] for value, count in sides[0].items())
    couples = sides[0].total() * sides[1].total()
    return 1 - ties / couples if couples else 0.0


def _shares_below(values: Counter[float], others: Counter[float]) -> dict[float, float]:
    """For each value, the share of the others that are smaller, ties a half."""
    total = others.total()
    ordered = sorted(values.keys() | others.keys())
    before = [0, *accumulate(others[value] for value in ordered)]
    return {value: (before[place] + others[value] / 2) / total for place, value in enumerate(ordered)}


def _measured(share: float, rows: float, sums: Sequence[float], alone: float, marked: int) -> Measured:
    prompts = len(sums)
    correction = prompts / (prompts - 1) if prompts > 1 else 1.0
    variance = correction * sum(each * each for each in sums)
    return Measured(share, rows, prompts, variance, variance / alone if alone else 1.0, marked / prompts)


def critical(rules: int, prompts: int, level: float = LEVEL) -> float:
    """The quantile with which intervals of this many rules hold together: Student's t for prompts - 1 degrees of freedom."""
    z = NormalDist().inv_cdf(1 - (1 - level) / max(1, rules) / 2)
    freedom = prompts - 1
    if freedom < 1:
        return math.inf
    # The expansion of Student's quantile around the normal one (Abramowitz and Stegun 26.7.5).
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))


def most_rows(found: Measured, effect: float) -> float:
    """The most independent rows that a rule counts for, of rules with this design effect; each prompt counts for one."""
    return found.rows / min(max(1.0, effect), found.rows_a_prompt)


def interval(found: Measured, rules: int, effect: float = 1.0, level: float = LEVEL) -> tuple[float, float]:
    """The interval of a share, one of this many rules with this design effect."""
    share = found.share
    rows = min(most_rows(found, effect), found.rows / max(1.0, found.design_effect))
    if found.variance > 0:
        rows = min(rows, share * (1 - share) / found.variance)
    return wilson(share, rows, critical(rules, found.prompts, level))


def wilson(share: float, rows: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval of a share of independent rows."""
    if not rows or math.isinf(quantile):
        return 0.0, 1.0
    square = quantile * quantile / rows
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def smallest_above(bound: float, rows: float, quantile: float) -> float | None:
    """The smallest share of independent rows whose interval lies above a bound; None if not even 1 does."""
    if wilson(1.0, rows, quantile)[0] <= bound:
        return None
    low, high = bound, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if wilson(middle, rows, quantile)[0] > bound else (middle, high)
    return high
