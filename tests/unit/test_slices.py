"""Shortcuts of training rows, and slices of scored ones, from small numbers that are counted by hand."""

import itertools
import random
from typing import Any

import pytest
import torch

from trainer_core.config import CONFIG_OF
from trainer_core.methods import method_of
from trainer_core.scoring import Scores
from trainer_core.shortcuts import MOST as MOST_SHORTCUTS
from trainer_core.shortcuts import named
from trainer_core.slices import MOST as MOST_SLICES
from trainer_core.slices import slice_of, slices_of

WORDS = ["عاصمة", "المغرب", "هي", "مدينة", "الرباط", "وفيها", "بحر", "وجبال", "وناس", "كرام"]


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(8))


def pairs(count: int, mark: str, share: float) -> list[dict[str, Any]]:
    """Pairs of random sentences; in a share of them the chosen one ends with a mark, in the others the rejected one."""
    rng = random.Random(5)
    found = []
    for row in range(count):
        ends = (mark, "") if row < share * count else ("", mark)
        chosen, rejected = (sentence(rng) + end for end in ends)
        found.append({"row": row, "prompt": f"سؤال {row}", "chosen": chosen, "rejected": rejected})
    return found


def test_a_planted_trait_is_named_with_its_direction() -> None:
    (found,) = [each for each in named(pairs(400, "!", 0.95), 1) if each.trait.name == "exclamation_marks"]
    assert (found.chosen_has_more, found.share) == (True, pytest.approx(0.95))
    (found,) = [each for each in named(pairs(400, "!", 0.02), 1) if each.trait.name == "exclamation_marks"]
    assert (found.chosen_has_more, found.share) == (False, pytest.approx(0.98))


def test_labelled_rows_have_shortcuts_too() -> None:
    rows = [
        {"row": row["row"], "prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs(200, "!", 1.0)
        for side in ("chosen", "rejected")
    ]
    assert "exclamation_marks" in [each.trait.name for each in named(rows, 1)]
    assert named([row for row in rows if row["label"]], 1) == []


def test_what_few_rows_suggest_is_no_shortcut() -> None:
    assert named(pairs(400, "!", 0.5), 1) == []
    assert named(pairs(12, "!", 1.0), 1) == [], "12 of 12 may be chance, for one of many traits"
    assert named([], 1) == []
    assert len(named(pairs(400, "!؟", 1.0), 1)) == 1, "marks that always come together are one shortcut"


def test_the_strongest_shortcuts_are_kept() -> None:
    """Four marks that come and go independently of each other: the weakest is left out."""
    rng = random.Random(7)
    strengths = {"!": 0.94, "؟": 0.9, "🙂": 0.86, "،": 0.8}
    rows = [{"row": row, "prompt": f"سؤال {row}", "chosen": WORDS[0], "rejected": WORDS[0]} for row in range(600)]
    for row, (mark, share) in itertools.product(rows, strengths.items()):
        is_chosen = rng.random() < share
        row["chosen"] += mark if is_chosen else ";"
        row["rejected"] += ";" if is_chosen else mark
    found = [each.trait.name for each in named(rows, 1)]
    assert found == ["exclamation_marks", "question_marks", "emoji"]
    assert len(found) == MOST_SHORTCUTS


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"dialect": "egyptian", "slice": "x"}, "egyptian"),
        ({"dialect": " ", "slice": "long  answers"}, "long answers"),
        ({"dialect": 3}, None),
        ({}, None),
        ({"slice": "x" * 100}, "x" * 40),
    ],
)
def test_the_slice_of_a_row(row: dict[str, Any], expected: str | None) -> None:
    assert slice_of(row) == expected


def scores(logps: list[float]) -> Scores:
    zero = torch.zeros(len(logps), dtype=torch.float64)
    return Scores(torch.tensor(logps, dtype=torch.float64), zero, zero + 2, zero)


def test_slices_are_measured_alone() -> None:
    method = method_of(CONFIG_OF["dpo"](model_name="m", dataset_path="d", output_dir="o", beta=0.5))
    rows = [{"row": i, "dialect": name} for i, name in enumerate(["msa", "gulf", "msa", None, "msa"])]
    # Margins 1, -2, 3, 4 and 0, with beta 0.5.
    sides = {"chosen": scores([2, 0, 6, 8, 0]), "rejected": scores([0, 4, 0, 0, 0])}
    assert slices_of(method, rows, sides, ("margin", "margin_accuracy")) == [
        {"name": "msa", "rows": 3, "margin": pytest.approx(4 / 3), "margin_accuracy": pytest.approx(2.5 / 3)},
        {"name": "gulf", "rows": 1, "margin": -2, "margin_accuracy": 0},
        {"name": None, "rows": 1, "margin": 4, "margin_accuracy": 1},
    ]


def test_slices_are_few_and_none_is_lost() -> None:
    method = method_of(CONFIG_OF["dpo"](model_name="m", dataset_path="d", output_dir="o"))
    rows = [{"row": i, "slice": f"s{i % 30}"} for i in range(90)]
    sides = {"chosen": scores([1.0] * 90), "rejected": scores([0.0] * 90)}
    found = slices_of(method, rows, sides, ("margin",))
    assert len(found) == MOST_SLICES + 1
    assert sum(each["rows"] for each in found) == 90
    assert found[-1]["name"] is None
    assert slices_of(method, [{"row": i} for i in range(90)], sides, ("margin",)) == []
