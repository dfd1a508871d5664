"""Reading and checking rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DATA
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
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


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


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({**LABELLED, "label": 1}, "label", "true or false"),
        ({**LABELLED, "label": None}, "label", "true or false"),
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
        (b"[" * 99999, "JSON"),
    ],
)
def test_a_line_that_is_no_json_is_named(line: bytes, reason: str) -> None:
    error = broken(lines(PAIR) + line + b"\n" + lines(PAIR))
    assert error.details[0].line == 2
    assert reason in error.details[0].reason


def test_kinds_do_not_mix() -> None:
    assert "pairs rows" in broken(lines(PAIR, LABELLED)).details[0].reason


def test_all_errors_are_told_up_to_a_limit() -> None:
    error = broken(lines(PAIR, *[{**PAIR, "chosen": ""}] * (MAX_ERRORS + 50)))
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


@pytest.mark.parametrize("data", [b'{"train": [', b'[{"prompt": "x"', b'{"train": [{]}'])
def test_a_broken_document(data: bytes) -> None:
    assert "not valid JSON" in broken(data).message


def test_memory_stays_small() -> None:
    """A line longer than the limit is refused before it is collected."""
    checker = RowChecker()
    pieces = (checker.feed(b"x" * 2**16) for _ in range(10_000))
    with pytest.raises(DataInvalid, match="longer than"):
        list(pieces)


def test_pairs_become_labelled_rows_for_kto(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(lines(PAIR))
    assert read_rows(path, "kto")["train"] == [
        {"prompt": PAIR["prompt"], "completion": PAIR["chosen"], "label": True},
        {"prompt": PAIR["prompt"], "completion": PAIR["rejected"], "label": False},
    ]


@pytest.mark.parametrize("method", ["ipo", "cpo"])
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

    assert not prompts("pairs_train.jsonl", "ipo") & prompts("pairs_held_out.jsonl", "ipo")
    assert not prompts("kto_train.jsonl", "kto") & prompts("kto_held_out.jsonl", "kto")
