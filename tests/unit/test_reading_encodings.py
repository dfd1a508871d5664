"""Bytes that the encoding of a file does not have, wherever they come, and UTF-8 that is named a code page."""

import json
from typing import Any

import pytest

from tests.reading import read, reason
from trainer_core.errors import DataInvalid
from trainer_core.reading.text import HEAD_BYTES
from trainer_core.reading_options import ReadingOptions
from trainer_core.rows import RowChecker, RowReport

# More than the reader looks at to know the encoding.
LONG = 2000
PAIR = {"prompt": "plain text, only ASCII letters in it", "chosen": "yes", "rejected": "no"}
# cp1252 has no letter for 0x81, cp1253 none for 0xd2 and 0xaa, which together are UTF-8.
PAGES = [("cp1252", b"\x81"), ("cp1253", b"\xe1\xd2\xaa"), ("gb18030", b"\xff"), ("iso8859-6", b"\xa1")]
KINDS = ("jsonl", "csv", "tsv", "json")


def written(kind: str, rows: list[dict[str, str]]) -> bytes:
    if kind == "json":
        return json.dumps(rows).encode()
    if kind == "jsonl":
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    mark = "," if kind == "csv" else "\t"
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(mark.join(f'"{cell}"' for cell in row) + "\n" for row in cells).encode()


def with_bytes(kind: str, data: bytes, at: list[int], count: int = LONG) -> tuple[bytes, list[int]]:
    """A long file with raw bytes in some rows (from 0), and where a reader counts these rows."""
    rows = [{**PAIR, "chosen": "@@" if number in at else "yes"} for number in range(count)]
    lines = [number + (2 if kind in ("csv", "tsv") else 1) for number in at]
    return written(kind, rows).replace(b"@@", data), lines


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("page", "byte"), PAGES)
@pytest.mark.parametrize("piece", [2**20, 1000])
def test_a_late_byte_that_a_code_page_lacks_is_named_by_its_line(kind: str, page: str, byte: bytes, piece: int) -> None:
    data, lines = with_bytes(kind, byte, [3, LONG - 100, LONG - 1])
    assert len(data) > HEAD_BYTES
    found = read(data, piece, encoding=page)
    assert [(error.line, error.code, error.params) for error in found.errors] == [
        (line, "wrong_encoding", {"encoding": page}) for line in lines
    ]
    assert f"a byte that is not valid in {page}" in found.errors[0].reason
    assert len(found.rows) == LONG - 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_late_byte_that_is_not_utf8_is_named_by_its_line(kind: str) -> None:
    """A file whose first foreign letter comes late, in a code page; its rows before it are good."""
    data, lines = with_bytes(kind, "نعم".encode("cp1256"), [LONG - 100, LONG - 1])
    found = read(data)
    assert [(error.line, error.code) for error in found.errors] == [(line, "not_utf8") for line in lines]
    assert "(`encoding`)" in found.errors[0].reason
    named = read(data, encoding="cp1256")
    assert (named.errors, named.values[-1]["chosen"]) == ([], "نعم")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [1, 7, 1000, 2**20])
@pytest.mark.parametrize("count", [1, 3, 700])
def test_late_utf8_is_no_code_page(kind: str, piece: int, count: int) -> None:
    """cp1256 has a letter for every byte, so Arabic in UTF-8 would become other letters without an error."""
    data, _ = with_bytes(kind, "نعم".encode(), [count - 1], count)
    found = reason(data, encoding="cp1256") if piece == 2**20 else read(data, piece, encoding="cp1256").errors[0]
    assert (found.code, found.params) == ("already_unicode", {"encoding": "UTF-8"})


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_late_letters_of_a_code_page_are_read_in_pieces_of_any_size(piece: int) -> None:
    for end in (b"", b"\n" * 2 * HEAD_BYTES):
        data, _ = with_bytes("csv", "نعم".encode("cp1256"), [299], 300)
        found = read(data + end, piece, encoding="cp1256")
        assert (found.errors, found.values[-1]["chosen"]) == ([], "نعم")


def test_a_broken_header_is_an_error_of_the_file() -> None:
    found = reason(b"a,\x81b\n1,2\n", encoding="cp1252")
    assert (found.line, found.code) == (1, "wrong_encoding")


def test_columns_of_json_with_a_broken_byte_are_refused() -> None:
    data = json.dumps({name: {"0": text, "1": text} for name, text in PAIR.items()}).encode()
    assert reason(data.replace(b"yes", b"\xff", 1)).code == "not_utf8"
    assert reason(data.replace(b"yes", b"\x81"), encoding="cp1252").params == {"encoding": "cp1252"}


def checked(data: bytes, **options: Any) -> RowReport:
    checker = RowChecker(options=ReadingOptions(**options))
    checker.feed(data)
    return checker.close()


def test_rows_with_broken_bytes_can_be_skipped() -> None:
    data, lines = with_bytes("csv", b"\x81", [3, 5])
    report = checked(data, encoding="cp1252", on_invalid="skip")
    assert (report.train_rows, report.skipped_rows) == (LONG - 2, 2)
    (error,) = report.errors
    assert (error.count, list(error.lines)) == (2, lines)
    with pytest.raises(DataInvalid, match=r"2 rows: contains a byte that is not valid in cp1252.* \(lines 5, 7\)"):
        checked(data, encoding="cp1252")
