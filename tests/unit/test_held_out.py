"""Counting answers to held-out prompts; every expected value is computed by hand."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trainer_core.comparison import Comparison
from trainer_core.config import CONFIG_OF
from trainer_core.errors import DataInvalid
from trainer_core.held_out import HeldOutPrompt, answer, counted, outcome, prompts_of, read, wilson


def comparison(margin: float, trained: str = "القاهرة", reference: str = "مصر", flags: tuple[str, ...] = ()) -> Comparison:
    return Comparison("س", trained, reference, 0.5, None, None, margin=margin, flags=flags)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (comparison(0.1), "better"),
        (comparison(-0.1), "worse"),
        (comparison(0.0), "tie"),
        (comparison(float("nan")), "tie"),
        (comparison(float("inf")), "tie"),
        (comparison(-float("inf")), "tie"),
        (comparison(5.0, trained="مصر"), "tie"),  # the same answer, whatever rounding makes of its reward
        (comparison(9.0, flags=("repetition",)), "broken"),  # however much the reward likes it
        (comparison(-9.0, flags=("foreign_script",)), "broken"),
    ],
)
def test_what_an_answer_counts_as(found: Comparison, expected: str) -> None:
    assert outcome(found) == expected


def test_counts_share_and_interval() -> None:
    found = counted(Counter(better=40, tie=2, worse=5, broken=1))
    assert (found["prompts"], found["better"], found["ties"], found["worse"], found["broken"]) == (48, 40, 2, 5, 1)
    assert found["share"] == pytest.approx(41 / 48)
    # Wilson's interval of 41 of 48, from a table.
    assert found["low"] == pytest.approx(0.7283, abs=1e-4)
    assert found["high"] == pytest.approx(0.9275, abs=1e-4)


@pytest.mark.parametrize(("share", "count"), [(0.0, 1), (1.0, 1), (1.0, 48), (0.5, 2)])
def test_the_interval_stays_within_its_bounds_and_around_its_share(share: float, count: int) -> None:
    low, high = wilson(share, count)
    assert 0 <= low <= share <= high <= 1
    assert high - low > 0.05


def test_answers_come_one_by_one_and_the_last_has_all() -> None:
    prompts = [HeldOutPrompt(row, f"سؤال {row}", (), f"a.jsonl:{row}") for row in (3, 7)]
    made = {3: comparison(2.0), 7: comparison(-1.0)}
    seen = list(answer(prompts, lambda each: made[each.row]))
    assert [(each["prompts"], each["asked"], len(each["answers"])) for each in seen] == [(1, 2, 1), (2, 2, 2)]
    assert [(each["row"], each["margin"], each["outcome"]) for each in seen[-1]["answers"]] == [
        ("a.jsonl:3", 2.0, "better"),
        ("a.jsonl:7", -1.0, "worse"),
    ]
    json.dumps(seen, allow_nan=False)


def test_prompts_are_distinct_and_know_their_wanted_answers() -> None:
    rows = [
        {"row": 1, "prompt": "أ", "completion": "جيد", "label": True},
        {"row": 2, "prompt": "أ", "completion": "سيئ", "label": False},
        {"row": 3, "prompt": "ب", "chosen": "نعم", "rejected": "لا"},
        {"row": 4, "prompt": "أ", "completion": "حسن", "label": True},
        {"row": 5, "prompt": "ج", "completion": "سيئ", "label": False},
    ]
    assert prompts_of(rows) == [
        HeldOutPrompt(1, "أ", ("جيد", "حسن"), 1),
        HeldOutPrompt(3, "ب", ("نعم",), 3),
        HeldOutPrompt(5, "ج", (), 5),
    ]


def config(tmp_path: Path, **fields: Any) -> Any:
    return CONFIG_OF["ipo"](model_name="m", output_dir=str(tmp_path), **fields)


def test_the_prompts_of_a_run_are_read_from_its_files(tmp_path: Path) -> None:
    train, held = (
        [{"prompt": f"{name} {i}", "chosen": "نعم", "rejected": "لا"} for i in range(1, 6)] for name in ("ت", "ح")
    )
    for name, rows in (("train", train), ("held", held)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (tmp_path / "both.json").write_text(json.dumps({"train": train, "validation": held}), encoding="utf-8")
    alone = config(tmp_path, dataset_path=str(tmp_path / "train.jsonl"))
    apart = config(tmp_path, dataset_path=str(tmp_path / "train.jsonl"), eval_dataset_path=str(tmp_path / "held.jsonl"))
    within = config(tmp_path, dataset_path=str(tmp_path / "both.json"))
    assert [each.prompt for each in read(apart, [4, 2])] == ["ح 4", "ح 2"], "in the order that the run recorded"
    assert [each.prompt for each in read(within, [4, 2])] == ["ح 4", "ح 2"]
    assert [each.prompt for each in read(alone, [5])] == ["ت 5"], "a row that was set aside"
    # An earlier version recorded nothing: validation data are known, rows that were set aside are not.
    assert len(read(apart, None)) == 5
    with pytest.raises(DataInvalid, match="no held-out prompts"):
        read(alone, None)
    with pytest.raises(DataInvalid, match="no held-out prompts"):
        read(alone, [99])


def test_a_prompt_is_found_by_any_of_its_rows(tmp_path: Path) -> None:
    """A run shuffles its rows and may drop some, so the row that it recorded need not be its prompt's first in the file."""
    prompts = ("أ", "ب", "أ", "ج", "ب")
    rows = [{"prompt": prompt, "chosen": f"نعم {i}", "rejected": "لا"} for i, prompt in enumerate(prompts, start=1)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    found = read(config(tmp_path, dataset_path=str(tmp_path / "rows.jsonl")), [5, 3])
    assert found == [HeldOutPrompt(5, "ب", ("نعم 2", "نعم 5"), 5), HeldOutPrompt(3, "أ", ("نعم 1", "نعم 3"), 3)]
