"""Which rows several datasets give, and what they are called."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.spec import read_spec
from tests.training import CONFIGS, write_rows
from trainer_core import mixing
from trainer_core.errors import DataInvalid, SpecInvalid
from trainer_core.mix_options import Take
from trainer_core.mixing import chosen, rows_of_each
from trainer_core.plan import fingerprint
from trainer_core.row_names import RowNames, naming, numbered, place_of


def pairs(name: str, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {i}", "chosen": "نعم", "rejected": "لا"} for i in range(count)]


def labelled(name: str, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {i}", "completion": "نعم", "label": i % 2 == 0} for i in range(count)]


def mixed(method: str, datasets: list[dict[str, Any]], **fields: Any) -> Any:
    return CONFIGS[method](model_name="m", datasets=datasets, **fields)


def given_by(weights: list[float], sizes: list[int]) -> list[int]:
    return rows_of_each([Take(weight=weight) for weight in weights], sizes, [str(i) for i in range(len(sizes))])


# -- how many


def test_weights_are_shares_of_the_largest_mix_without_a_repetition() -> None:
    assert given_by([3, 1], [1000, 200]) == [600, 200]
    assert given_by([1, 1], [1000, 200]) == [200, 200]
    assert given_by([0.3, 0.1], [1000, 200]) == [600, 200], "only their ratio counts"
    assert given_by([2, 1], [1000, 3]) == [6, 3]
    assert given_by([1, 2], [1000, 3]) == [2, 3], "one and a half, half a row up"
    assert given_by([0.1, 0.7], [1, 7]) == [1, 7], "a tenth is a tenth"


@given(
    st.lists(
        st.tuples(st.floats(0.01, 100, allow_nan=False).map(lambda weight: round(weight, 3)), st.integers(200_000, 10**6)),
        min_size=1,
        max_size=6,
    )
)
def test_shares_hold_within_half_a_row(found: list[tuple[float, int]]) -> None:
    weights, sizes = [weight for weight, _ in found], [size for _, size in found]
    counts = given_by(weights, sizes)
    exact = [Fraction(str(weight)) for weight in weights]
    first_out = min(range(len(sizes)), key=lambda i: sizes[i] / exact[i])
    assert counts[first_out] == sizes[first_out], "the one that runs out first gives all, so no mix is larger"
    for count, size, weight in zip(counts, sizes, exact, strict=True):
        assert 0 < count <= size
        assert abs(count - sizes[first_out] * weight / exact[first_out]) <= Fraction(1, 2)


def test_a_number_of_rows_is_what_it_says() -> None:
    assert rows_of_each([Take(rows=7), Take()], [10, 4], "ab") == [7, 4]
    with pytest.raises(DataInvalid, match="asks for 11 rows from a, which has 10; ask for at most 10") as caught:
        rows_of_each([Take(rows=11), Take()], [10, 4], "ab")
    assert caught.value.details[0].field == "datasets.0.rows"


def test_a_dataset_that_would_give_nothing_is_refused() -> None:
    with pytest.raises(DataInvalid, match="takes no rows from 1: its weight is so small") as caught:
        given_by([1000, 1], [100, 100])
    assert caught.value.details[0].field == "datasets.1.weight"


# -- which


def test_rows_are_chosen_by_seed_and_none_comes_twice() -> None:
    found = chosen(1000, 100, 42, 1)
    assert found == chosen(1000, 100, 42, 1) == sorted(set(found))
    assert len(found) == 100
    assert found not in (chosen(1000, 100, 43, 1), chosen(1000, 100, 42, 2))
    assert chosen(5, 5, 42, 1) == [0, 1, 2, 3, 4]


def test_a_mix_reads_the_rows_of_its_files(tmp_path: Path) -> None:
    formal, dialect = (
        write_rows(tmp_path / "formal.jsonl", pairs("f", 30)),
        write_rows(tmp_path / "dialect.jsonl", pairs("d", 5)),
    )
    settings = mixed("ipo", [{"path": formal, "weight": 2}, {"path": dialect, "weight": 1, "name": "Gulf"}])
    found = mixing.read(settings)
    assert [row["prompt"][0] for row in found.train] == ["f"] * 10 + ["d"] * 5
    assert found.train == mixing.read(settings).train
    assert len({row["prompt"] for row in found.train}) == 15
    other = mixing.read(settings.model_copy(update={"seed": 7}))
    assert [row["prompt"] for row in other.train] != [row["prompt"] for row in found.train]
    assert [(place_of(row["row"]), found.names.short(row["row"])) for row in found.train][-1] == (2, "Gulf:5")
    for row in found.train[:10]:
        assert found.names.long(row["row"]) == f"row {int(row['prompt'][2:]) + 1} of formal.jsonl"
    first, second = found.report(found.train)
    assert first == {"name": "formal.jsonl", "rows_in_file": 30, "rows_taken": 10, "rows_trained_on": 10}
    assert second == {"name": "Gulf", "rows_in_file": 5, "rows_taken": 5, "rows_trained_on": 5}


def test_kto_mixes_pairs_with_labelled_rows(tmp_path: Path) -> None:
    """A pair is one row of its file and stays whole, and no two rows of two files share a number."""
    of_pairs, single = write_rows(tmp_path / "p.jsonl", pairs("p", 9)), write_rows(tmp_path / "s.jsonl", labelled("s", 9))
    found = mixing.read(mixed("kto", [{"path": of_pairs, "rows": 3}, {"path": single, "rows": 4}]))
    assert len(found.train) == 3 * 2 + 4
    twins = found.train[:6]
    assert [row["row"] for row in twins[::2]] == [row["row"] for row in twins[1::2]]
    assert [row["label"] for row in twins] == [True, False] * 3
    assert len({row["row"] for row in found.train}) == 7
    assert [report["rows_trained_on"] for report in found.report(found.train)] == [6, 4]


def test_validation_parts_are_joined_unless_there_is_validation_data(tmp_path: Path) -> None:
    for name in ("a", "b"):
        both = {"train": pairs(name, 4), "validation": pairs(f"held {name}", 2)}
        (tmp_path / f"{name}.json").write_text(json.dumps(both), encoding="utf-8")
    datasets = [{"path": str(tmp_path / "a.json"), "rows": 2}, {"path": str(tmp_path / "b.json")}]
    found = mixing.read(mixed("ipo", datasets))
    assert [row["prompt"] for row in found.validation] == ["held a 0", "held a 1", "held b 0", "held b 1"]
    assert len(found.train) == 2 + 4
    apart = write_rows(tmp_path / "apart.jsonl", pairs("apart", 1))
    found = mixing.read(mixed("ipo", datasets, eval_dataset_path=apart))
    assert [found.names.short(row["row"]) for row in found.validation] == ["apart.jsonl:1"]


def test_one_file_is_read_as_ever(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", pairs("p", 3))
    found = mixing.read(CONFIGS["ipo"](model_name="m", dataset_path=path, eval_dataset_path=path))
    assert [row["row"] for row in found.train] == [row["row"] for row in found.validation] == [1, 2, 3]
    assert found.taken == ()
    assert [found.names.short(1), found.names.long(1)] == [1, "row 1"]


# -- errors name the dataset


def test_an_error_names_the_dataset_and_its_line(tmp_path: Path) -> None:
    good = {"path": write_rows(tmp_path / "good.jsonl", pairs("p", 3))}
    broken = {
        "path": write_rows(tmp_path / "broken.jsonl", [*pairs("p", 1), {"prompt": "س", "chosen": "", "rejected": "لا"}])
    }
    with pytest.raises(DataInvalid, match=r"^broken.jsonl: line 2: chosen: is empty$") as caught:
        mixing.read(mixed("ipo", [good, broken]))
    detail = caught.value.details[0]
    assert (detail.field, detail.reason, detail.line, detail.code) == ("chosen", "is empty (in broken.jsonl)", 2, "empty")
    single = {"path": write_rows(tmp_path / "single.jsonl", labelled("s", 3)), "name": "ratings"}
    with pytest.raises(DataInvalid, match=r"^ratings: IPO needs preference pairs"):
        mixing.read(mixed("ipo", [good, single]))
    with pytest.raises(DataInvalid, match=r"from good\.jsonl, which has 3"):
        mixing.read(mixed("ipo", [{**good, "rows": 4}]))
    with pytest.raises(DataInvalid, match=r"^gone.jsonl: cannot read gone.jsonl"):
        mixing.read(mixed("ipo", [good, {"path": str(tmp_path / "gone.jsonl")}]))


def test_datasets_of_one_name_are_told_apart() -> None:
    names = RowNames(["rows.jsonl", "other.jsonl", "rows.jsonl"])
    assert names.labels == ("rows.jsonl (1)", "other.jsonl", "rows.jsonl (3)")
    detail = names.detail("row", "is wrong", numbered(8, 3))
    assert (detail.reason, detail.line) == ("is wrong (in rows.jsonl (3))", 8)
    assert names.short(8) == 8, "a row from memory"
    with pytest.raises(DataInvalid, match=r"^is wrong$"), naming(None):
        raise DataInvalid("is wrong")


# -- what a config and a spec may say

A, B = {"path": "a.jsonl"}, {"path": "b.jsonl"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "exactly one of dataset_path and datasets"),
        ({"datasets": [A], "dataset_path": "a.jsonl"}, "exactly one of dataset_path and datasets"),
        ({"datasets": []}, "at least 1 item"),
        ({"datasets": [{**A, "rows": 1, "weight": 1}]}, "set rows or weight, not both"),
        ({"datasets": [{**A, "weight": 1}, B]}, "dataset 2 has no weight"),
        ({"datasets": [{**A, "weight": 1}, {**B, "rows": 3}]}, "dataset 2 has no weight"),
        ({"datasets": [A, {"path": "./a.jsonl"}]}, "listed twice"),
        ({"datasets": [A, {"path": "no/../a.jsonl"}]}, "listed twice"),
        ({"datasets": [{**A, "rows": 0}]}, "greater than or equal to 1"),
        ({"datasets": [{**A, "weight": 0}]}, "greater than 0"),
        ({"datasets": [{**A, "weight": float("nan")}]}, "finite number"),
        ({"datasets": [{**A, "share": 1}]}, "Extra inputs"),
    ],
)
def test_a_config_names_its_data_once(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        CONFIGS["cpo"](model_name="m", **fields)


ID = "0" * 32


@pytest.mark.parametrize(
    ("fields", "place", "reason"),
    [
        (
            {"dataset_path": "x", "datasets": [{"dataset_id": ID}]},
            "datasets",
            "exactly one of these: dataset_id, dataset_path, datasets",
        ),
        ({"datasets": [{"weight": 1}]}, "datasets.0", "exactly one of these: dataset_id, dataset_path"),
        ({"datasets": [{"dataset_id": ID, "dataset_path": "x"}]}, "datasets.0", "exactly one of"),
        ({"datasets": [{"dataset_id": ID}, {"dataset_id": ID}]}, "", "listed twice"),
        ({"datasets": [{"dataset_id": ID, "rows": 1.5}]}, "datasets.0.rows", "must be a whole number"),
        ({"datasets": [{"dataset_id": ID, "path": "/etc/passwd"}]}, "datasets.0.path", "is not a field"),
        ({"datasets": [{"dataset_id": ID, "name": "a\x00"}]}, "datasets.0.name", "NUL"),
    ],
)
def test_a_spec_names_its_data_once(fields: dict[str, Any], place: str, reason: str) -> None:
    with pytest.raises(SpecInvalid, match=reason) as caught:
        read_spec({"method": "ipo", "model_name": "m/n", **fields})
    assert caught.value.details[0].field == place


# -- the hash of the plan


def test_the_mix_is_part_of_the_plans_hash_and_one_file_keeps_its_own() -> None:
    rows = [{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}]
    assert fingerprint(rows) == "e6868ec12b9b63a0d3ca67d89c07d4b014f4133b92756ef5026dcb934798f1fe"
    assert len({fingerprint(rows), fingerprint(rows, [1]), fingerprint(rows, [1, 2]), fingerprint(rows, [2, 1])}) == 4
