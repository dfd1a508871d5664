"""Reading and checking rows."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DATA
from tests.training import PAIR_METHODS
from trainer_core.errors import DataInvalid
from trainer_core.rows import MAX_ERRORS, RowChecker, RowReport, check_file, peek_kind, read_rows

PAIR = {"prompt": "ما عكس كبير؟", "chosen": "صغير يا صديقي", "rejected": "صغير"}
LABELLED = {"prompt": "ما عكس كبير؟", "completion": "صغير", "label": True}


def check(data: bytes, piece: int = 7) -> RowReport:
    """Feeds bytes in small pieces, so that rows and letters are cut anywhere."""
    checker = RowChecker()
    for start in range(0, len(data), piece):
        checker.feed(data[start : start + piece])
    return checker.close()


def lines(*rows: Any) -> bytes:
    """JSONL; what UTF-8 cannot hold is escaped."""
    written = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return written.encode("utf-8", "backslashreplace")


def broken(data: bytes) -> DataInvalid:
    with pytest.raises(DataInvalid) as caught:
        check(data)
    return caught.value


def test_jsonl_of_labelled_rows() -> None:
    report = check(lines(LABELLED, {**LABELLED, "label": False, "confidence": 0.9, "annotator_id": "expert_1"}))
    assert (report.format, report.kind, report.train_rows, report.desirable_rows) == ("jsonl", "kto", 2, 1)


@pytest.mark.parametrize("indent", [None, 2])
def test_split_json(indent: int | None) -> None:
    document = {"train": [LABELLED, LABELLED], "validation": [{**LABELLED, "label": False}]}
    report = check(json.dumps(document, ensure_ascii=False, indent=indent).encode())
    assert (report.format, report.kind, report.train_rows, report.validation_rows) == ("json", "kto", 2, 1)


def test_split_json_with_validation_first() -> None:
    report = check(json.dumps({"validation": [PAIR], "train": [PAIR]}).encode())
    assert (report.kind, report.train_rows, report.validation_rows) == ("pairs", 1, 1)


def test_list_of_rows_and_byte_order_mark() -> None:
    assert check(b"\xef\xbb\xbf" + json.dumps([PAIR]).encode()).train_rows == 1
    assert check(b"\xef\xbb\xbf" + lines(PAIR)).train_rows == 1


def test_last_line_without_a_break_and_blank_lines() -> None:
    assert check(lines(PAIR) + b"\n\n" + lines(PAIR).rstrip()).train_rows == 2


def test_messages_are_text() -> None:
    row = {
        "prompt": [{"role": "system", "content": "كن لطيفًا"}, {"role": "user", "content": "مرحبًا"}],
        "completion": [{"role": "assistant", "content": "أهلًا"}],
        "label": True,
    }
    assert check(lines(row)).train_rows == 1


MESSAGES = [{"role": "system", "content": "كن لطيفًا"}, {"role": "user", "content": "مرحبًا"}]
HOSTED = {
    "input": {"messages": MESSAGES, "tools": [], "parallel_tool_calls": True},
    "preferred_output": [{"role": "assistant", "content": "أهلًا"}],
    "non_preferred_output": [{"role": "assistant", "content": "لا"}],
}


def test_the_hosted_vendors_shape_is_read_as_pairs(tmp_path: Path) -> None:
    path = tmp_path / "hosted.jsonl"
    path.write_bytes(lines({**HOSTED, "source": "thumbs"}))
    expected = {"prompt": MESSAGES, "chosen": HOSTED["preferred_output"], "rejected": HOSTED["non_preferred_output"]}
    assert read_rows(path, "ipo")["train"] == [{**expected, "source": "thumbs", "row": 1}]
    assert [row["label"] for row in read_rows(path, "kto")["train"]] == [True, False]


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({**HOSTED, "input": MESSAGES}, "input", "no messages"),
        ({**HOSTED, "input": {"messages": MESSAGES, "tools": [{}]}}, "input", "tools"),
        ({**HOSTED, "preferred_output": []}, "preferred_output", "no messages"),
        ({**HOSTED, "non_preferred_output": "لا"} | {"preferred_output": "لا"}, "non_preferred_output", "same as chosen"),
        ({"input": {"messages": MESSAGES}, "preferred_output": "x"}, "non_preferred_output", "missing"),
    ],
)
def test_errors_of_the_hosted_shape_use_its_names(row: Any, field: str, reason: str) -> None:
    details = broken(lines(HOSTED, row)).details
    assert (details[0].line, details[0].field) == (2, field)
    assert reason in details[0].reason


def test_answers_are_compared_in_composed_form() -> None:
    """Shadda before and after its vowel: two spellings of one text; the model would only learn the order of marks."""
    row = {"prompt": "س", "chosen": "مدر\u0651\u064eس", "rejected": "مدر\u064e\u0651س"}
    assert row["chosen"] != row["rejected"]
    assert "same as chosen" in broken(lines(row)).details[0].reason


def test_text_is_kept_as_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {**LABELLED, "completion": " مدر\u0651\u064eس\u200fـــ \u0661 "}
    path.write_bytes(lines(row))
    assert read_rows(path, "kto")["train"] == [{**row, "row": 1}]


@pytest.mark.parametrize("document", [True, False])
@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_gzipped_rows(piece: int, document: bool) -> None:
    text = json.dumps({"train": [PAIR] * 30, "validation": [PAIR]}).encode() if document else lines(*[PAIR] * 30)
    assert check(gzip.compress(text), piece).train_rows == 30
    if not document:
        two_members = gzip.compress(text) + gzip.compress(text)
        assert check(two_members, piece).train_rows == 60


def test_a_broken_gzip_file_is_named() -> None:
    whole = gzip.compress(lines(*[PAIR] * 30))
    assert "truncated" in broken(whole[:-9]).message
    assert "not valid gzip" in broken(whole[:-8] + bytes(8)).message


def test_a_gzip_bomb_is_refused_early() -> None:
    bomb = gzip.compress(b" " * 80 * 2**20)
    with pytest.raises(DataInvalid, match="expands to more than 200 times"):
        check(bomb, 4096)


@pytest.mark.parametrize("as_messages", [True, False])
def test_parquet(tmp_path: Path, as_messages: bool) -> None:
    from pyarrow import Table, parquet

    rows = [HOSTED if as_messages else {**PAIR, "source": None}] * 700
    parquet.write_table(Table.from_pylist(rows), tmp_path / "rows.parquet")
    report = check_file(tmp_path / "rows.parquet")
    assert (report.format, report.kind, report.train_rows) == ("parquet", "pairs", 700)
    assert peek_kind(tmp_path / "rows.parquet") == "pairs"
    if not as_messages:
        assert read_rows(tmp_path / "rows.parquet", "cpo")["train"][-1] == {**PAIR, "row": 700}


def test_parquet_errors_are_named(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pylist([PAIR, {**PAIR, "chosen": None}]), tmp_path / "rows.parquet")
    with pytest.raises(DataInvalid, match="line 2: chosen: is missing"):
        check_file(tmp_path / "rows.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-20])
    with pytest.raises(DataInvalid, match="not valid Parquet"):
        check_file(tmp_path / "cut.parquet")


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({**LABELLED, "prompt": [*MESSAGES, {"role": "assistant", "content": "x"}]}, "prompt", "ends with an assistant"),
        ({**LABELLED, "completion": [{"role": "user", "content": "x"}]}, "completion", "one assistant message"),
        ({**LABELLED, "completion": [{"role": "assistant", "content": " "}]}, "completion", "empty"),
        ({**LABELLED, "completion": [{"role": "assistant", "content": ["x"]}]}, "completion", "not text"),
        ({**LABELLED, "completion": "x \ud83d"}, "completion", "unpaired surrogate"),
        ({**LABELLED, "completion": [{"role": "assistant", "content": "\ude00"}]}, "completion", "surrogate"),
        ({**LABELLED, "label": 3}, "label", "true or false"),
        ({**LABELLED, "label": None}, "label", "missing"),
        ({**LABELLED, "completion": "  "}, "completion", "empty"),
        ({**LABELLED, "completion": 3}, "completion", "must be text"),
        ({**LABELLED, "prompt": []}, "prompt", "no messages"),
        ({**LABELLED, "prompt": [{"role": "robot", "content": "x"}]}, "prompt", "role"),
        ({"prompt": "x", "label": True}, "completion", "missing"),
        ({"prompt": "x", "chosen": "y"}, "rejected", "missing"),
        ({**PAIR, "rejected": PAIR["chosen"]}, "rejected", "same as chosen"),
        ({"text": "x"}, "", "a row needs"),
        ([1], "", "JSON object"),
        ("text", "", "JSON object"),
    ],
)
def test_a_broken_row_is_named(row: Any, field: str, reason: str) -> None:
    good = LABELLED if isinstance(row, dict) and "chosen" not in row else PAIR
    error = broken(lines(good, row))
    assert [(d.line, d.field) for d in error.details] == [(2, field)]
    assert reason in error.details[0].reason
    assert error.message.startswith("line 2: ")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": ', "not valid JSON"),
        (b'{"prompt": NaN}', "NaN"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b"[" * 99999, "deeper than 100 levels"),
    ],
)
def test_a_line_that_is_no_json_is_named(line: bytes, reason: str) -> None:
    error = broken(lines(PAIR) + line + b"\n" + lines(PAIR))
    assert error.details[0].line == 2
    assert reason in error.details[0].reason


def test_kinds_do_not_mix() -> None:
    assert (
        broken(lines(PAIR, LABELLED)).message
        == "line 2: is of a different kind (labelled answers) from the rows before it (pairs)"
    )


def test_equal_errors_are_one_with_the_lines_that_it_has() -> None:
    error = broken(lines(PAIR, *[{"prompt": "x", "chosen": "y"}] * 40, {**PAIR, "prompt": " "}))
    assert error.message == "40 rows: rejected is missing (lines 2, 3, 4, …) (and 1 more error)"
    assert [(each.field, each.count, each.line) for each in error.details] == [("rejected", 40, 2), ("prompt", 1, 42)]
    assert error.details[0].lines == tuple(range(2, 12))
    assert error.details[0].code == "missing"


def test_all_errors_are_told_up_to_a_limit() -> None:
    error = broken(lines(LABELLED, *[{**LABELLED, "label": number} for number in range(2, MAX_ERRORS + 52)]))
    assert len(error.details) == MAX_ERRORS
    assert f"and {MAX_ERRORS + 49} more" in error.message


@pytest.mark.parametrize("data", [b"", b"\n \n", b"[]", b'{"train": []}', b'{"validation": [], "train": []}'])
def test_no_rows(data: bytes) -> None:
    assert "no rows" in broken(data).message


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_document_may_end_with_blank_lines(piece: int) -> None:
    document = json.dumps([PAIR]).encode()
    assert check(document + b"\n \n", piece).train_rows == 1
    with pytest.raises(DataInvalid, match="not valid JSON"):
        check(document + b"\n" + document, piece)


@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize(
    ("document", "field", "reason"),
    [
        ({"train": [PAIR], "test": [PAIR]}, "test", "rename this one"),
        ({"train": [PAIR], 'a\\"b': [PAIR]}, 'a\\"b', "only the lists"),
        ({"train": [PAIR], "validation": "AAA"}, "validation", "must be a list of rows"),
        ({"train": [PAIR], "validation": {"rows": [PAIR]}}, "validation", "must be a list of rows"),
        ({"train": {"0": PAIR}, "validation": [PAIR]}, "train", "must be a list of rows"),
    ],
)
def test_rows_where_none_are_read_are_refused(document: Any, field: str, reason: str, piece: int) -> None:
    with pytest.raises(DataInvalid, match=reason) as caught:
        check(json.dumps(document).encode(), piece)
    assert caught.value.details[0].field == field


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_document_may_tell_of_itself(piece: int) -> None:
    about = {"version": 2, "info": {"authors": ["train"], "train": {}}, "validation": None}
    report = check(json.dumps({"train": [PAIR], **about}).encode(), piece)
    assert (report.train_rows, report.validation_rows) == (1, 0)


@pytest.mark.parametrize("data", [b'{"train": [', b'[{"prompt": "x"', b'{"train": [{]}'])
def test_a_broken_document(data: bytes) -> None:
    assert "not valid JSON" in broken(data).message


def test_memory_stays_small() -> None:
    """A line longer than the limit is not collected."""
    checker = RowChecker()
    tracemalloc.start()
    try:
        for _ in range(10_000):
            checker.feed(b"x" * 2**16)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()
    with pytest.raises(DataInvalid, match=r"line 1: the row is longer than"):
        checker.close()


def test_pairs_become_labelled_rows_for_kto(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(lines(PAIR))
    assert read_rows(path, "kto")["train"] == [
        {"prompt": PAIR["prompt"], "completion": PAIR["chosen"], "label": True, "row": 1},
        {"prompt": PAIR["prompt"], "completion": PAIR["rejected"], "label": False, "row": 1},
    ]


@pytest.mark.parametrize("method", PAIR_METHODS)
def test_labelled_rows_are_refused_for_pairs(method: Any) -> None:
    with pytest.raises(DataInvalid, match="needs preference pairs"):
        read_rows(DATA / "kto_train.jsonl", method)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match=r"nothing\.jsonl"):
        check_file(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize(
    ("name", "kind", "rows"),
    [
        ("kto_train.jsonl", "kto", 400),
        ("kto_extended.jsonl", "kto", 400),
        ("kto_split.json", "kto", 400),
        ("pairs_train.jsonl", "pairs", 400),
    ],
)
def test_the_shipped_samples(name: str, kind: str, rows: int) -> None:
    report = check_file(DATA / name)
    assert report.kind == kind == peek_kind(DATA / name)
    assert report.train_rows >= rows


def test_held_out_rows_share_no_prompt_with_training_rows() -> None:
    def prompts(name: str, method: Any) -> set[str]:
        return {row["prompt"] for row in read_rows(DATA / name, method)["train"]}

    held_out = prompts("pairs_held_out.jsonl", "ipo")
    assert len(held_out) >= 400
    for name, method in (("pairs_train.jsonl", "ipo"), ("kto_train.jsonl", "kto"), ("kto_extended.jsonl", "kto")):
        assert not held_out & prompts(name, method)


@pytest.mark.parametrize("piece", [7, 2**16])
def test_a_document_that_is_too_deep_is_refused_early(piece: int) -> None:
    data = b"[" * 100_000

    def read() -> None:
        checker = RowChecker()
        for start in range(0, len(data), piece):
            checker.feed(data[start : start + piece])
        checker.close()

    with pytest.raises(DataInvalid, match="deeper than 100 levels"):
        read()


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 1000])
def test_brackets_in_strings_are_no_nesting(piece: int) -> None:
    tricky = 'a"]\\' + "[{" * 300 + '\\"'
    data = json.dumps([{"prompt": tricky, "chosen": "a", "rejected": "b"}] * 3).encode()
    checker = RowChecker()
    for start in range(0, len(data), piece):
        checker.feed(data[start : start + piece])
    assert checker.close().train_rows == 3
