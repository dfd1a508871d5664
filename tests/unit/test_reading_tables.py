"""Tables as people have them: texts with cells, workbooks, Arrow, and all of these packed."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tests.reading import read, reason
from tests.workbooks import ods, xlsx, zipped
from trainer_core.errors import DataInvalid, DataUnclear

ROWS = [
    {"prompt": "ما عكس كبير؟", "chosen": "صغير، يا\nصديقي", "rejected": 'قال "صغير", ثم سكت; تمامًا'},
    {"prompt": "ما عاصمة مصر؟", "chosen": "القاهرة 😀", "rejected": "لا\tأدري"},
]
PLAIN = [{"prompt": "ما عكس كبير؟", "chosen": "صغير، يا\nصديقي", "rejected": "لا أدري"}] * 2
CELLS = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(
    delimiter: str, encoding: str = "utf-8", rows: list[dict[str, Any]] = ROWS, quoting: Any = csv.QUOTE_MINIMAL
) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting)
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return text.getvalue().encode(encoding)


def arrow(is_stream: bool = False, compression: str | None = None) -> bytes:
    data, found = io.BytesIO(), pyarrow.Table.from_pylist(ROWS)
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with (pyarrow.ipc.new_stream if is_stream else pyarrow.ipc.new_file)(data, found.schema, options=options) as writer:
        writer.write_table(found)
    return data.getvalue()


def in_parquet() -> bytes:
    data = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), data)
    return data.getvalue()


EQUAL: dict[str, tuple[bytes, str, str | None]] = {
    "jsonl": (jsonl(ROWS), "jsonl", None),
    "json": (json.dumps(ROWS).encode(), "json", None),
    "comma": (table(","), "csv", None),
    "all quoted, with a mark": (table(",", "utf-8-sig", quoting=csv.QUOTE_ALL), "csv", None),
    "tab": (table("\t"), "tsv", None),
    "semicolon": (table(";"), "csv", None),
    "semicolon, told by Excel": (b"sep=;\r\n" + table(";"), "csv", None),
    "UTF-16 as Excel saves it": (table("\t", "utf-16"), "tsv", "utf-16"),
    "UTF-16 without a mark": (table(",", "utf-16-be"), "csv", "utf-16-be"),
    "JSONL in UTF-16": (jsonl(ROWS).decode().encode("utf-16"), "jsonl", "utf-16"),
    "JSON in UTF-16": (json.dumps(ROWS).encode("utf-16-le"), "json", "utf-16-le"),
    "xlsx": (xlsx({"S": CELLS}), "xlsx", None),
    "Parquet": (in_parquet(), "parquet", None),
    "Arrow file": (arrow(), "arrow", None),
    "Arrow stream, packed": (arrow(is_stream=True, compression="zstd"), "arrow_stream", None),
    "gz": (gzip.compress(table(",")) + bytes(512), "csv.gz", None),
    "zst": (zstandard.compress(table(";")) + zstandard.compress(b""), "csv.zst", None),
    "xz": (lzma.compress(jsonl(ROWS)), "jsonl.xz", None),
    "bz2": (bz2.compress(jsonl(ROWS[:1])) + bz2.compress(jsonl(ROWS[1:])), "jsonl.bz2", None),
    "zip": (zipped({"data/rows.csv": table(","), "__MACOSX/data/._rows.csv": b"x"}), "csv.zip", None),
    "xlsx in a zip": (zipped({"book.xlsx": xlsx({"S": CELLS})}), "xlsx.zip", None),
    "Parquet in gz": (gzip.compress(in_parquet()), "parquet.gz", None),
}


@pytest.mark.parametrize("name", EQUAL)
def test_a_table_gives_the_same_rows_in_each_kind_of_file(name: str) -> None:
    data, kind, encoding = EQUAL[name]
    found = read(data)
    assert (found.errors, found.values) == ([], ROWS)
    assert (found.kind, found.encoding) == (kind, encoding)
    assert found.format_name == (kind if kind in {"json", "parquet"} and not encoding else "jsonl")


@pytest.mark.parametrize("name", ["comma", "tab", "UTF-16 as Excel saves it", "JSON in UTF-16", "json", "gz", "zst", "bz2"])
@pytest.mark.parametrize("piece", [1, 3, 64])
def test_pieces_of_any_size_give_the_same_rows(name: str, piece: int) -> None:
    data, _, _ = EQUAL[name]
    assert read(data, piece) == read(data)


def test_rows_are_named_by_the_line_where_they_begin() -> None:
    assert [line for _, line, _ in read(b'a,b\r\n1,2\r\n\r\n"x\r\ny",3\r\n5,6\r\n').rows] == [2, 4, 6]
    assert [line for _, line, _ in read(xlsx({"S": [[], ["a", "b"], ["1", "2"], [], ["3", "4"]]})).rows] == [3, 5]


def test_a_long_table_is_read_row_by_row() -> None:
    rows = "".join(f'"{number}\nx","{"y" * 500}"\n' for number in range(2000))
    found = read(f"a,b\n{rows}".encode(), 1000)
    assert [row["a"] for row in found.values] == [f"{number}\nx" for number in range(2000)]
    assert found.rows[-1][1] == 2 + 2 * 1999


@pytest.mark.parametrize(
    ("data", "line", "code", "told"),
    [
        (b"a,b\n1,2\n3,4,5\n", 3, "cells_and_columns", "3 cells for 2 columns"),
        (b'a,b\n1,2\n"3,4\n5,6\n', 3, "open_quote", "closing quotation mark is missing"),
        (b'a,b\n1,"2" x\n', 2, "quotes", "not a valid table row"),
        (b"a,b,a\n1,2,3\n", 1, "duplicate_column", "called a;"),
        (b",".join(b"c%d" % i for i in range(1001)) + b"\n1,2\n", 1, "too_many_columns", "1,000 columns"),
        (b"prompt,chosen\n", 1, "header_alone", "--data-binary"),
        (b'a,b\n"' + b"x,\n" * 2**21, 2, "row_too_long", "quotation mark may be missing"),
        (b"prompt\nx\n", 1, "no_rows_here", "neither JSON nor a table"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(data: bytes, line: int, code: str, told: str) -> None:
    found = reason(data)
    assert (found.line, found.code) == (line, code)
    assert told in found.reason


def test_empty_cells_are_no_values_and_unnamed_columns_have_their_place() -> None:
    assert read(b"a,,c,\n1,2,,\n,,,\n3\n").values == [{"a": "1", "column 2": "2"}, {"a": "3"}]
    assert read(xlsx({"S": [["a", None, "c"], ["1", "2", None]]})).values == [{"a": "1", "column 2": "2"}]


# -- workbooks


def test_cells_of_a_workbook_are_text_numbers_or_truth_values_and_formulas_do_nothing() -> None:
    found = read(xlsx({"S": [["n", "x", "ok", "f"], [3, 2.5, False, '=WEBSERVICE("http://example.com")']]}))
    assert found.values == [{"n": 3, "x": 2.5, "ok": False, "f": "as computed"}]
    assert isinstance(found.values[0]["n"], int)
    assert read(ods([*CELLS[:1], ["س", "نعم", "لا"]])).values == [{"prompt": "س", "chosen": "نعم", "rejected": "لا"}]


def test_of_several_sheets_one_is_asked_for() -> None:
    sheets = {"أزواج": CELLS, "أخرى": [["a", "b"], ["1", "2"]], "فارغة": [], "مخفية": CELLS}
    book = xlsx(sheets, hidden=("مخفية",))
    with pytest.raises(DataUnclear) as caught:
        read(book)
    question = caught.value.question
    assert question is not None
    assert (question.about, question.choices, question.guess) == ("sheet", ("أزواج", "أخرى"), "أزواج")
    assert list(question.rows) == ROWS
    assert read(book, sheet="أخرى").values == [{"a": "1", "b": "2"}]
    assert read(xlsx({"أزواج": CELLS, "فارغة": []})).values == ROWS
    assert reason(book, sheet="ثالثة").code == "unknown_sheet"


def test_workbooks_without_rows_or_with_a_broken_end_are_named() -> None:
    assert reason(xlsx({"S": CELLS[:1]})).code == "empty_workbook"
    assert "truncated" in reason(xlsx({"S": CELLS})[:-40]).reason
    assert reason(xlsx({"S": [["a", "a"], ["1", "2"]]})).code == "duplicate_column"
    assert "more than 1,000 columns" in reason(_wide_arrow()).reason


def _wide_arrow() -> bytes:
    data, wide = io.BytesIO(), pyarrow.table({f"c{i}": ["x"] for i in range(1001)})
    with pyarrow.ipc.new_stream(data, wide.schema) as writer:
        writer.write_table(wide)
    return data.getvalue()


def test_what_a_column_on_disk_cannot_say_in_json_is_named() -> None:
    data = io.BytesIO()
    parquet.write_table(pyarrow.table({"a": ["x", "y"], "n": [float("nan"), float("inf")]}), data)
    found = read(data.getvalue())
    assert found.values == [{"a": "x"}]
    assert [(error.line, error.field, error.code) for error in found.errors] == [(2, "n", "not_finite")]


# -- code pages


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("size", [1, 300])
def test_arabic_of_windows_is_guessed_shown_and_confirmed(delimiter: str, size: int) -> None:
    data = table(delimiter, "cp1256", PLAIN * size)
    with pytest.raises(DataUnclear) as caught:
        read(data, 1000)
    question = caught.value.question
    assert question is not None
    assert (question.about, question.guess, question.choices[0]) == ("encoding", "cp1256", "cp1256")
    assert list(question.rows) == (PLAIN * size)[:3]
    for name in ("cp1256", "windows-1256"):
        found = read(data, 1000, encoding=name)
        assert (found.values, found.encoding) == (PLAIN * size, "cp1256")


def test_other_alphabets_are_guessed_too() -> None:
    with pytest.raises(DataUnclear) as caught:
        read(
            jsonl([{"prompt": "какой город столица России?", "chosen": "Москва", "rejected": "не знаю"}])
            .decode()
            .encode("cp1251")
        )
    assert caught.value.question is not None
    assert caught.value.question.guess == "cp1251"
    assert caught.value.question.rows[0]["chosen"] == "Москва"


@pytest.mark.parametrize("name", ["klingon", "rot13", "zip", "utf-7", "\0", "../x"])
def test_an_unknown_code_page_is_named(name: str) -> None:
    found = reason(table(",", "cp1256", PLAIN), encoding=name)
    assert found.code == "unknown_encoding"
    assert "cp1256" in found.reason


def test_a_code_page_that_the_bytes_contradict_is_refused() -> None:
    assert "already UTF-8" in reason(table(","), encoding="cp1256").reason
    for name in ("utf-16", "utf-8-sig", "utf-16-be"):
        found = reason(table(",", name), encoding="cp1256")
        assert (found.code, found.params["encoding"]) == ("already_unicode", name.upper().removesuffix("-SIG"))
    assert read(table(",", "utf-16"), encoding="utf-16-le").values == ROWS
    assert read(table(",", "utf-8-sig"), encoding="UTF8").values == ROWS
    assert read(b"a,b\n1,2\n", encoding="cp1256").values == [{"a": "1", "b": "2"}]


def test_one_broken_letter_is_no_other_code_page() -> None:
    found = reason(jsonl(ROWS) + b'{"prompt": "\xff"}\n')
    assert (found.line, found.code) == (3, "not_utf8")


# -- what is packed


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_packed_files_are_bounded_whole_and_packed_once(pack: Callable[[bytes], bytes]) -> None:
    data = jsonl(ROWS)
    assert read(pack(data), 5).values == ROWS
    assert "truncated" in reason(pack(data)[:-5]).reason
    assert reason(pack(pack(data))).code == "packed_twice"
    assert "more than 200 times" in reason(pack(b" " * 2**20) * 66).reason


def test_a_zip_holds_one_table() -> None:
    two = reason(zipped({"a.csv": table(","), "b/c.csv": table(",")}))
    assert (two.code, two.params) == ("several_files", {"files": ["a.csv", "b/c.csv"]})
    assert reason(zipped({})).code == "empty_zip"
    inner = zipped({"a.csv": table(",")})
    assert reason(zipped({"b.zip": zipped({"a.zip": inner})})).code == "packed_too_often"
    assert "more than 200 times" in reason(zipped({"a.jsonl": b" " * 65 * 2**20})).reason


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8) | st.sampled_from(
    ['"', ",", "a\nb", ";", "\t"]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5), st.sampled_from(",;\t"), st.integers(1, 50))
def test_any_cells_come_back(pairs: list[tuple[str, str]], delimiter: str, piece: int) -> None:
    rows = [{"prompt": first, "chosen": second} for first, second in pairs]
    assert read(table(delimiter, rows=rows), piece).values == rows


@pytest.mark.parametrize(
    ("package", "data"),
    [("charset_normalizer", table(",", "cp1256", PLAIN)), ("zstandard", zstandard.compress(jsonl(ROWS)))],
)
def test_a_missing_package_is_named(package: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataInvalid, match=f"`{package.replace('_', '-')}`.* is not installed"):
        raise DataInvalid(reason(data).reason)


def test_workbooks_without_their_package_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python_calamine.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = reason(xlsx({"S": CELLS}))
    assert found.code == "not_installed"
    assert "`python-calamine`" in found.reason
