"""Every layout against changes of its rows, against all other layouts, and against rows with any cells."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.layout_samples import CASES, GOOD1, Q1, SAMPLES, THRESHOLD, dialogue, means_the_facts, option_of, options, read
from trainer_core.errors import DataInvalid, DataUnclear
from trainer_core.layouts import Sample, claimants
from trainer_core.row_rules import Row


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_no_two_layouts_claim_the_same_rows(layout: str, name: str) -> None:
    claims = claimants(Sample(SAMPLES[layout][name]), options(threshold=THRESHOLD))
    assert [one.name for one, _ in claims] == [layout]


def mutated(rows: list[Row], noise: random.Random) -> list[Row]:
    """The rows with their columns in another order, with columns beside them, with nulls, or with a column renamed."""
    names = list(rows[0])
    noise.shuffle(names)
    found = [{name: row[name] for name in names if name in row} for row in rows]
    for _ in range(noise.randrange(1, 4)):
        kind = noise.choice(["beside", "null beside", "renamed", "null", "gone"])
        name = noise.choice(names)
        if "beside" in kind:
            beside = noise.choice(["source", "id", "lang", "معرف", "annotator", "split", "model", "tokens"])
            found = [
                {**row, beside: None if kind == "null beside" else noise.choice([1, "x", [2], {"a": 1}])} for row in found
            ]
        elif kind == "renamed":
            found = [{f"{old}_x" if old == name else old: cell for old, cell in row.items()} for row in found]
        elif kind == "null":
            found = [{**found[0], name: None}, *found[1:]]
        else:
            found = [{old: cell for old, cell in row.items() if old != name} for row in found]
    return found


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_mutations_are_read_rightly_or_refused(layout: str, name: str) -> None:
    for seed in range(50):
        rows = mutated(SAMPLES[layout][name], random.Random(f"{layout} {name} {seed}"))
        sample = Sample({column: cell for column, cell in row.items() if cell is not None} for row in rows)
        how = options(threshold=THRESHOLD)
        assert len(claimants(sample, how)) <= 1, rows
        try:
            _, found = read(rows, option_of(layout))
        except DataInvalid as error:
            is_asked_or_named = isinstance(error, DataUnclear) or bool(error.details)
        else:
            is_asked_or_named = True
            means_the_facts(found)
        assert is_asked_or_named, rows


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_other_columns_and_their_order_change_no_layout(layout: str, name: str) -> None:
    noise = random.Random(f"{layout} {name}")
    beside = {"source": "x", "id": 7, "lang": "ar", "split": None, "ملاحظات": "—", "meta": {"a": [1]}, "model": "m"}
    for _ in range(5):
        rows = [{**row, **beside} for row in SAMPLES[layout][name]]
        names = list(rows[0])
        noise.shuffle(names)
        report, found = read([{name: row[name] for name in names} for row in rows], option_of(layout))
        assert report.layout == layout
        assert {"source", "id", "lang", "ملاحظات", "meta", "model"} <= set(report.unused)
        means_the_facts(found)


# -- any rows

_COLUMNS = sorted({column for samples in SAMPLES.values() for rows in samples.values() for column in rows[0]})
_TEXTS = st.sampled_from(
    [Q1, GOOD1, "", " ", "نعم", "1", "[]", '[{"role": "user", "content": "x"}]', dialogue(Q1, GOOD1), "\ud83d"]
)
_MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", 3]), "content": _TEXTS | st.none()})
    | st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": _TEXTS})
    | _TEXTS,
    max_size=4,
)
_CELLS = _TEXTS | _MESSAGES | st.integers(-3, 3) | st.booleans() | st.none() | st.floats() | st.just({"messages": []})
_CHANGES = st.dictionaries(st.sampled_from([*_COLUMNS, "السؤال", "المختار", "source"]), _CELLS, max_size=3)
_GIVEN = st.sampled_from([[{}, {}], *(rows for samples in SAMPLES.values() for rows in samples.values())])


@st.composite
def _some_rows(draw: st.DrawFn) -> list[Row]:
    """Rows of a layout, or none, with some cells changed."""
    return [{**row, **draw(_CHANGES)} for row in draw(_GIVEN)]


@given(_some_rows(), st.sampled_from([None, 3.0]), st.sampled_from(["refuse", "skip"]))
@settings(max_examples=200, deadline=None)
def test_any_rows_are_read_or_refused(rows: list[Row], threshold: float | None, on_invalid: str) -> None:
    """Nothing but `DataInvalid` comes of rows, and what is read is in our own form."""
    before = json.dumps(rows)
    try:
        _, found = read(rows, options(threshold=threshold, on_invalid=on_invalid))
    except DataInvalid as error:
        json.dumps(error.as_dict(), ensure_ascii=False).encode()
        return
    assert json.dumps(rows) == before
    report, again = read(found)
    assert report.is_plain or not found
    assert again == found or json.dumps(again) == json.dumps(found)
