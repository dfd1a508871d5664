"""Shortcuts: rules about one trait that find the preferred answer so often that a model may learn the trait instead.

A rule is named when the lower end of its interval is above `BOUND`. Rules that agree in `AGREEMENT` of the rows are one
shortcut, named after its most concrete trait. A rule that only holds because of a stronger one is listed with that one: it
disappears when the stronger trait is removed from the answers, or, for a length, when amounts are compared per character.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median_high
from typing import NamedTuple

from trainer_core import traits
from trainer_core.counter_sets import Pair, kind_of, marks_of, without
from trainer_core.data_report import intervals
from trainer_core.data_report.intervals import Measured
from trainer_core.data_report.rules import AMOUNTS, LENGTHS, Rule
from trainer_core.traits import TRAITS, seen

BOUND = 0.60
AGREEMENT = 0.90
FEW_ROWS = 200
"""Below this many rows a report says what it could not have found."""
_TOLERANCE = 0.02
"""Rules whose shares differ by less are equally good names of one shortcut."""
_TRIED_COUPLES = 1000
"""Couples of answers on which rules are compared with each other."""
_FORMAT = ("list_markers", "markdown_marks", "line_breaks")
"""Traits that bring marks with them: a bullet is also a punctuation mark."""
_ORDER = {
    name: place for place, name in enumerate(sorted((trait.name for trait in TRAITS), key=lambda name: name not in _FORMAT))
}


class Couple(NamedTuple):
    """A preferred and another answer that a rule chooses between, each with its prompt."""

    prompt: str
    preferred: str
    other_prompt: str
    other: str


@dataclass
class Tried:
    """A rule and how often it is right.

    Attributes:
        more: whether the preferred side has more of the trait, rather than less.
        share, low, high: how often the rule is right in this direction, with its interval.
        differing: share of the rows (or couples of rows) in which the sides differ in the trait.
    """

    rule: Rule
    more: bool
    share: float
    low: float
    high: float
    differing: float
    agreeing: list[str] = field(default_factory=list)
    """Other rules that are the same shortcut."""
    following: list[str] = field(default_factory=list)
    """Other rules that hold only because of this one."""

    @property
    def is_named(self) -> bool:
        return self.low > BOUND


@dataclass(frozen=True)
class Verdict:
    """Every rule that was tried, the strongest first, and the shortcuts among them.

    Attributes:
        smallest: the smallest share that would have been named; None if no share would.
        rarer: rows with the rarer label; None for pairs.
    """

    tried: list[Tried]
    named: list[Tried]
    smallest: float | None
    rarer: int | None = None


Numbers = tuple[Rule, Measured, float]
"""A rule, its share of rows in which the preferred side has more, and the share of rows in which the sides differ."""


def verdict(found: Sequence[Numbers], couples: Sequence[Couple], rarer: int | None = None) -> Verdict:
    """Judges the rules that were measured.

    Args:
        couples: some couples of answers, at random, on which rules are compared with each other.
        rarer: rows with the rarer label; None for pairs.
    """
    differing = [each for each in found if each[2] > 0]
    if not differing:
        return Verdict([], [], None, rarer)
    effect = median_high(measured.design_effect for _, measured, _ in differing)
    tried = [_tried(rule, measured, differs, len(differing), effect) for rule, measured, differs in differing]
    tried.sort(key=lambda each: -each.share)
    named = _grouped([each for each in tried if each.is_named], couples)
    # Rules about words are tried on fewer rows.
    rows, prompts = max((intervals.most_rows(measured, effect), measured.prompts) for _, measured, _ in differing)
    quantile = intervals.critical(len(differing), prompts)
    return Verdict(tried, named, intervals.smallest_above(BOUND, rows, quantile), rarer)


def couples_of_pairs(pairs: Sequence[Pair], seed: int) -> list[Couple]:
    """Some of the pairs, at random."""
    chosen = random.Random(seed).sample(pairs, min(len(pairs), _TRIED_COUPLES))
    return [Couple(pair.prompt, pair.chosen, pair.prompt, pair.rejected) for pair in chosen]


def couples_of_labels(
    desirable: Sequence[tuple[str, str]], undesirable: Sequence[tuple[str, str]], seed: int
) -> list[Couple]:
    """Couples of a desirable and an undesirable row, (prompt, answer) each, at random."""
    if not desirable or not undesirable:
        return []
    rng = random.Random(seed)
    return [Couple(*rng.choice(desirable), *rng.choice(undesirable)) for _ in range(_TRIED_COUPLES)]


def _tried(rule: Rule, measured: Measured, differs: float, rules: int, effect: float) -> Tried:
    low, high = intervals.interval(measured, rules, effect)
    more = measured.share >= 0.5
    share = measured.share if more else 1 - measured.share
    return Tried(rule, more, share, *((low, high) if more else (1 - high, 1 - low)), differs)


def _signs(rules: Sequence[Tried], couples: Sequence[Couple]) -> dict[str, list[int]]:
    """By rule, for each couple 1 where the rule is right, -1 where it is wrong, 0 where both sides are equal."""
    found: dict[str, list[int]] = {each.rule.name: [] for each in rules}
    for one, preferred, two, other in couples:
        for each in rules:
            right = _sign(each.rule.measure(one, preferred) - each.rule.measure(two, other))
            found[each.rule.name].append(right if each.more else -right)
    return found


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _grouped(named: Sequence[Tried], couples: Sequence[Couple]) -> list[Tried]:
    """The shortcuts, the strongest first; the others are listed with theirs."""
    signs = _signs(named, couples)
    heads: list[Tried] = []
    left = list(named)
    while left:
        own = signs[left[0].rule.name]
        group = [each for each in left if _agreement(own, signs[each.rule.name]) >= AGREEMENT] or left[:1]
        head = _head(group, couples)
        head.agreeing = [each.rule.name for each in group if each is not head]
        left = [each for each in left if each not in group]
        head.following = _following(left, head, couples)
        left = [each for each in left if each.rule.name not in head.following]
        heads.append(head)
    return heads


def _agreement(one: Sequence[int], other: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one) if one else 0.0


def _head(group: Sequence[Tried], couples: Sequence[Couple]) -> Tried:
    """The rule after which a shortcut is named: of those that are about as strong, the first concrete one, or the first."""
    best = [each for each in group if each.share >= group[0].share - _TOLERANCE]
    best.sort(key=lambda each: _ORDER.get(each.rule.name, len(_ORDER)))
    length = next((each for each in best if each.rule.name in LENGTHS), None)
    if length:
        amounts = [each for each in best if each.rule.name in AMOUNTS]
        if len(_following(amounts, length, couples)) == len(amounts):
            return length
    return next((each for each in best if each.rule.is_concrete), best[0])


def _following(tried: Sequence[Tried], head: Tried, couples: Sequence[Couple]) -> list[str]:
    """The rules that stop being shortcuts once the head's trait is removed from the answers."""
    if head.rule.name in LENGTHS:
        tried = [replace(each, rule=_per_character(each.rule)) for each in tried if each.rule.name in AMOUNTS]
        changed = couples
    else:
        changed = _without(head, couples)
    if not changed or not tried:
        return []
    quantile = intervals.critical(1, len(changed))
    shares = {name: sum(1 + sign for sign in signs) / (2 * len(signs)) for name, signs in _signs(tried, changed).items()}
    return [name for name, share in shares.items() if intervals.wilson(share, len(changed), quantile)[0] <= BOUND]


def _per_character(rule: Rule) -> Rule:
    return replace(rule, measure=lambda prompt, answer: rule.measure(prompt, answer) / max(1, len(answer)))


def _without(head: Tried, couples: Sequence[Couple]) -> list[Couple]:
    """The couples without a trait, or without the words of a shortcut; none if no edit takes it out."""
    trait = head.rule.trait
    if trait is None:
        words = {name.partition(":")[2] for name in (head.rule.name, *head.agreeing) if ":" in name}
        return _edited(
            couples, lambda answer: traits.WORD.sub(lambda word: "" if keyed(word[0]) in words else word[0], answer)
        )
    if marks := marks_of(trait):
        return _edited(couples, lambda answer: marks.sub("", answer))
    if kind_of(trait) == "made_equal":
        return _edited(couples, lambda answer: without(trait, answer))
    return []


def _edited(couples: Sequence[Couple], edit: Callable[[str], str]) -> list[Couple]:
    return [each._replace(preferred=edit(each.preferred), other=edit(each.other)) for each in couples]


def keyed(word: str) -> str:
    """A word as it is compared."""
    return "".join(seen(word).keys)
