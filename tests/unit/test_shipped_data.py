"""The data that ship: no trait of the answers gives the preferred one away, alone or together with the others."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.shortcuts import regression, rules
from tests.training import ON_LABELS, ON_PAIRS
from trainer_core.row_rules import LABELLED
from trainer_core.rows import read_rows

DATA = Path(__file__).resolve().parents[2] / "tafdil" / "shipped" / "data"
MOST = 0.6
Row = dict[str, Any]


def parts() -> dict[str, list[Row]]:
    """The rows of every part of every file."""
    found: dict[str, list[Row]] = {}
    for path in sorted(DATA.iterdir()):
        found |= {f"{path.name} {part}": rows for part, rows in read_rows(path, method_of(path.name)).items() if rows}
    return found


def method_of(name: str) -> str:
    return ON_LABELS if name.startswith(LABELLED) else ON_PAIRS


PARTS = parts()
TRAINING = [name for name in PARTS if "held_out" not in name and not name.endswith("validation")]


def held_out_of(name: str) -> list[Row]:
    """The file's own validation rows, or else the held-out pairs, which KTO takes apart."""
    own = f"{name.split(maxsplit=1)[0]} validation"
    return PARTS[own] if own in PARTS else read_rows(DATA / "pairs_held_out.jsonl", method_of(name))["train"]


def test_every_file_that_ships_is_looked_at() -> None:
    assert {name.split()[0] for name in PARTS} == {path.name for path in DATA.iterdir()}
    text = (DATA / "kto_split.json").read_text(encoding="utf-8")
    assert {name.split()[1] for name in PARTS if name.startswith("kto_split")} == set(json.loads(text))
    assert len(TRAINING) < len(PARTS)


@pytest.mark.parametrize("name", PARTS)
def test_no_trait_tells_the_preferred_answer(name: str) -> None:
    telling = {trait: round(share, 3) for trait, share in rules(PARTS[name]).items() if share > MOST}
    assert not telling, telling


@pytest.mark.parametrize("name", TRAINING)
def test_all_traits_together_do_not_tell_it_either(name: str) -> None:
    accuracy = regression(PARTS[name], held_out_of(name))
    assert accuracy <= MOST


# -- the check itself, on data made for it

TEXT = "عاصمة مصر هي القاهرة مدينة كبيرة على نهر النيل يعرفها كل عاقل ولا شيء جديد في ذلك"
MARKS = ("،", "؛", "٥", "ـ", "ّ", "🙂", "\n")


def some_answer(rng: random.Random) -> list[str]:
    """Random words, each with a mark in one case of four."""
    words = rng.choices(TEXT.split(), k=rng.randint(6, 10))
    return [word + rng.choice(MARKS) if rng.random() < 0.25 else word for word in words]


def some_pairs(seed: int, *, marked: float = 0.5, marks: tuple[str, ...] = ()) -> list[Row]:
    """400 pairs whose sides are drawn alike, but that one side has more of each of `marks`: the chosen side in a share
    `marked` of the pairs."""
    rng = random.Random(seed)
    pairs = [(some_answer(rng), some_answer(rng)) for _ in range(400)]
    for mark in marks:
        rng.shuffle(pairs)
        for number, (chosen, rejected) in enumerate(pairs):
            side, other = (chosen, rejected) if number < marked * len(pairs) else (rejected, chosen)
            surplus = "".join(other).count(mark) - "".join(side).count(mark) + 1
            side[0] += mark * max(0, surplus)
    return [{"prompt": "ما عاصمة مصر؟", "chosen": " ".join(one), "rejected": " ".join(other)} for one, other in pairs]


def labelled(pairs: list[Row]) -> list[Row]:
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs
        for side in ("chosen", "rejected")
    ]


@pytest.mark.parametrize("shape", [list, labelled])
def test_sides_drawn_alike_pass(shape: Any) -> None:
    assert max(rules(shape(some_pairs(1))).values()) <= MOST
    assert regression(shape(some_pairs(1)), shape(some_pairs(2))) <= MOST


@pytest.mark.parametrize(("mark", "trait"), [("،", "commas"), ("\n", "line_breaks")])
def test_one_mark_more_on_the_chosen_side_fails(mark: str, trait: str) -> None:
    train, held_out = (some_pairs(seed, marked=1, marks=(mark,)) for seed in (1, 2))
    assert rules(train)[trait] == 1
    assert rules(labelled(train))[trait] > MOST
    assert regression(train, held_out) > 0.95
    assert regression(labelled(train), labelled(held_out)) > MOST


def test_one_mark_less_on_the_chosen_side_fails() -> None:
    train, held_out = (some_pairs(seed, marked=0, marks=("،",)) for seed in (1, 2))
    assert max(rules(train).values()) == 1
    assert regression(train, held_out) > 0.95


def test_weak_traits_fail_together() -> None:
    train, held_out = (some_pairs(seed, marked=0.59, marks=MARKS) for seed in (1, 2))
    assert max(rules(train).values()) <= MOST
    assert regression(train, held_out) > MOST
