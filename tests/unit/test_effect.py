"""Verdicts, margins and signs from plain numbers; every expected value is computed by hand."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from trainer_core.effect import (
    BOUNDS,
    HALF_BOUNDS,
    Answers,
    Evidence,
    Samples,
    compared,
    describe,
    judge,
    paired_margin,
    scripts,
    unpaired_margin,
)

GOOD = Samples(prompts=4, differing=0.5, repetition=0.1, repetition_before=0.1, foreign_script=0.0, length_ratio=1.0)
MOVED = Evidence(rows_from="validation", rows=64, mean_kl=0.1, shift=0.1, margin=None, samples=GOOD)


def verdict(**fields: Any) -> str:
    return judge(replace(MOVED, **fields)).verdict


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (-1e-9, "hardly_changed"),  # what rounding makes of 0
        (0.0, "hardly_changed"),
        (BOUNDS.hardly_kl * 0.99, "hardly_changed"),
        (BOUNDS.hardly_kl, "changed"),
        (BOUNDS.collapsed_kl, "changed"),
        (BOUNDS.collapsed_kl * 1.01, "collapsed"),
        (math.nan, "collapsed"),
        (math.inf, "collapsed"),
    ],
)
def test_the_divergence_decides(kl: float, expected: str) -> None:
    assert verdict(mean_kl=kl) == expected


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (0.0, "hardly_changed"),
        (BOUNDS.hardly_shift, "changed"),
        (BOUNDS.collapsed_shift * 1.01, "collapsed"),
        (math.nan, "collapsed"),
    ],
)
def test_without_a_divergence_the_shift_decides(shift: float, expected: str) -> None:
    found = judge(replace(MOVED, mean_kl=None, shift=shift))
    assert found.verdict == expected
    assert found.decided_by == (() if expected == "changed" else ("shift",))


def test_rounding_in_half_precision_is_no_change() -> None:
    """1e-5 is what bf16 alone makes of the shipped model."""
    moved = replace(MOVED, mean_kl=1e-4)
    assert (judge(moved).verdict, judge(moved, HALF_BOUNDS).verdict) == ("changed", "hardly_changed")


def test_a_large_margin_does_not_make_a_change() -> None:
    assert verdict(mean_kl=1e-7, margin=paired_margin([5.0, 6.0, 7.0])) == "hardly_changed"


@pytest.mark.parametrize(
    "sign",
    [
        {"repetition": 0.7},
        {"foreign_script": 0.3},
        {"length_ratio": BOUNDS.length_ratio * 1.1},
        {"length_ratio": 0.9 / BOUNDS.length_ratio},
    ],
)
def test_each_sign_in_the_answers_is_a_collapse(sign: dict[str, float]) -> None:
    found = judge(replace(MOVED, samples=replace(GOOD, **sign)))
    assert (found.verdict, found.decided_by) == ("collapsed", tuple(sign))
    text = describe(found.verdict, found.as_dict())
    assert text.startswith("the run broke the model: ")


def test_a_model_that_always_repeated_itself_did_not_collapse() -> None:
    assert verdict(samples=replace(GOOD, repetition=0.9, repetition_before=0.8)) == "changed"


def test_a_model_that_hardly_moved_is_not_blamed_for_its_answers() -> None:
    assert verdict(mean_kl=1e-7, samples=replace(GOOD, repetition=0.9)) == "hardly_changed"


def test_evidence_is_json_also_where_it_is_not_finite() -> None:
    found = judge(replace(MOVED, mean_kl=math.nan, shift=math.inf)).as_dict()
    assert (found["mean_kl"], found["shift"], found["decided_by"]) == (None, None, ["mean_kl", "shift"])
    json.dumps(found, allow_nan=False)
    assert "not finite" in describe("collapsed", found)


def test_a_margin_of_pairs() -> None:
    """Mean 2, variance ((1)² + 0 + (1)²) / 2 = 1, standard error 1/√3."""
    found = paired_margin([1.0, 2.0, 3.0])
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.mean == 2
    assert found.high - found.mean == pytest.approx(1.96 / math.sqrt(3))
    assert found.mean - found.low == pytest.approx(1.96 / math.sqrt(3))


def test_a_margin_of_rows_of_two_labels() -> None:
    """Means 3 and 1; variances 2 and 8 of two rows each: Welch's standard error √(2/2 + 8/2) = √5."""
    found = unpaired_margin([2.0, 4.0], [-1.0, 3.0])
    assert found is not None
    assert found.high is not None
    assert found.mean == 2
    assert found.high - found.mean == pytest.approx(1.96 * math.sqrt(5))


def test_what_has_no_interval_says_so() -> None:
    assert paired_margin([]) is None
    assert paired_margin([math.nan, 1.0]) is None
    assert unpaired_margin([1.0, 2.0], []) is None
    one = paired_margin([1.5])
    assert one is not None
    assert (one.mean, one.low, one.high) == (1.5, None, None)
    few = unpaired_margin([1.0], [0.5, 0.7])
    assert few is not None
    assert (few.low, few.high) == (None, None)


def test_letters_are_counted_by_script() -> None:
    assert scripts("سلام abc 12 漢!\ufffd") == {"ARABIC": 4, "LATIN": 3, "CJK": 1, "REPLACEMENT": 1}


def answers(*texts: str, tokens: int = 10) -> Answers:
    return Answers(texts, [tokens] * len(texts), [0.0] * len(texts))


def test_a_script_is_foreign_when_neither_prompts_nor_earlier_nor_wanted_answers_have_it() -> None:
    before = answers("نعم")
    assert compared(["ما؟"], before, answers("да да"), answers()).foreign_script == 1
    assert compared(["ما؟"], before, answers("نعم да"), answers()).foreign_script == pytest.approx(2 / 5)
    assert compared(["что?"], before, answers("да"), answers()).foreign_script == 0
    assert compared(["ما؟"], answers("да"), answers("да"), answers()).foreign_script == 0
    assert compared(["ما؟"], before, answers("да"), answers("да")).foreign_script == 0
    assert compared(["ما؟"], before, answers("123 ..."), answers()).foreign_script == 0


@pytest.mark.parametrize(
    ("before", "wanted", "after", "ratio"),
    [
        (10, 10, 40, 4.0),
        (10, 10, 4, 0.4),
        (10, 40, 40, 1.0),  # it learnt to answer at length, as it was shown
        (10, 40, 20, 1.0),
        (10, 40, 80, 2.0),
        (40, 10, 10, 1.0),
        (40, 10, 5, 0.5),
        (1, 1, 2, 1.0),  # a word more or less
        (10, None, 30, 3.0),
        (6, 6, 0, 0.0),  # nothing, where a few words were expected
        (6, None, 0, 0.0),
        (0, 6, 0, 1.0),  # it said nothing before either
    ],
)
def test_lengths_are_held_against_what_was_and_what_is_wanted(
    before: int, wanted: int | None, after: int, ratio: float
) -> None:
    shown = answers("a", tokens=wanted) if wanted else answers()
    found = compared(["q"], answers("a", tokens=before), answers("a", tokens=after), shown)
    assert found.length_ratio == pytest.approx(ratio)


def test_answers_that_say_nothing_are_a_collapse() -> None:
    found = judge(replace(MOVED, samples=compared(["q"], answers("a", tokens=6), answers("", tokens=0), answers())))
    assert (found.verdict, found.decided_by) == ("collapsed", ("length_ratio",))
    assert describe(found.verdict, found.as_dict()) == "the run broke the model: its sample answers are empty"


def test_answers_that_differ_are_counted() -> None:
    found = compared(["1", "2", "3", "4"], answers("a", "b", "c", "d"), answers("a", "B", "c", "D"), answers())
    assert (found.prompts, found.differing) == (4, 0.5)
