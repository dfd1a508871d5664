"""JSON and JSONL of every shape, errors in them, and files that contain no rows."""

import json
import pickle
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from tests.reading import read, reason
from tests.workbooks import zipped
from trainer_core.errors import DataInvalid
from trainer_core.rows import check_file

ROWS = [{"prompt": "س", "chosen": "نعم", "n": [1, {"x": None}]}, {"prompt": "ص 😀", "chosen": "لا", "n": []}]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]
COLUMNS = {name: {str(place): row[name] for place, row in enumerate(ROWS)} for name in ROWS[0]}
SPLIT = {"columns": list(ROWS[0]), "index": [0, 1], "data": [list(row.values()) for row in ROWS]}
SCHEMA = {"fields": [{"name": "index", "type": "integer"}], "primaryKey": ["index"], "pandas_version": "1.4.0"}
API = {
    "features": [{"feature_idx": 0, "name": "prompt", "type": {"dtype": "string"}}],
    "rows": [{"row_idx": place, "row": row, "truncated_cells": []} for place, row in enumerate(ROWS)],
    "num_rows_total": 2,
}
SHAPES: dict[str, tuple[str, str]] = {
    "lines": ("\n".join(LINES), "jsonl"),
    "old Mac": ("\r".join(LINES) + "\r", "jsonl"),
    "joined files": (f"\ufeff{LINES[0]}\n\ufeff{LINES[1]}\n", "jsonl"),
    "list": (json.dumps(ROWS), "json"),
    "split": (json.dumps({"version": 1, "train": ROWS}), "json"),
    "pretty split": (json.dumps({"version": 1, "train": ROWS}, indent=1), "json"),
    "data": (json.dumps({"data": ROWS}), "json_rows"),
    "rows, pretty": (json.dumps({"rows": ROWS}, indent=2), "json_rows"),
    "rows of an API": (json.dumps(API, ensure_ascii=False), "json_rows"),
    "pandas": (json.dumps(COLUMNS), "json_columns"),
    "pandas, by index": (json.dumps({str(place): row for place, row in enumerate(ROWS)}), "json_columns"),
    "pandas split": (json.dumps(SPLIT), "json_rows"),
    "pandas table": (
        json.dumps({"schema": SCHEMA, "data": [{"index": place, **row} for place, row in enumerate(ROWS)]}),
        "json_rows",
    ),
    "pretty objects": ("\n".join(json.dumps(row, indent=2) for row in ROWS), "json_objects"),
    "pretty objects of Windows": ("\ufeff" + "\r\n".join(json.dumps(row, indent=4) for row in ROWS), "json_objects"),
}


@pytest.mark.parametrize("piece", [1, 7, 2**20])
@pytest.mark.parametrize("name", SHAPES)
def test_json_in_its_shapes_gives_the_same_rows(name: str, piece: int) -> None:
    text, kind = SHAPES[name]
    found = read(text.encode(), piece)
    assert (found.errors, found.values, found.kind) == ([], ROWS, kind)


def test_large_documents_are_told_apart_by_their_beginning() -> None:
    many = ROWS * 3000
    columns = {name: {str(place): row[name] for place, row in enumerate(many)} for name in ROWS[0]}
    for document in ({"data": many}, {"note": "x" * 200, "train": many}, columns, many):
        # Letters of two bytes at every second place, and pieces that cut them.
        found = read(json.dumps(document, ensure_ascii=False).replace(" ", "").replace('"نعم"', '"ننعم"').encode(), 9_999)
        assert (found.errors, len(found.rows)) == ([], 6000)
        assert found.values[0]["chosen"] == "ننعم"
    long = [{"prompt": "x" * 100_000, "chosen": "y"}] * 3
    assert read("\n".join(json.dumps(row, indent=1) for row in long).encode(), 10_000).values == long
    assert read("\n".join(map(json.dumps, long)).encode(), 10_000).kind == "jsonl"


@pytest.mark.parametrize("as_document", [True, False])
@pytest.mark.parametrize(
    ("row", "name", "code"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "c", "duplicate_key"),
        ('{"a": 1, "a": 1}', "a", "duplicate_key"),
        ('{"a": 1e999}', "a", "not_finite"),
        ('{"a": {"b": [0, -1e999]}}', "b", "not_finite"),
        ('{"a": NaN}', "a", "not_finite"),
        ('{"a": -Infinity}', "a", "not_finite"),
        ('{"a": ["\\ud83d"]}', "a", "half_character"),
        ('{"a": {"\\ude00": 1}}', "a", "half_character"),
        ('{"\\uD800": 1}', "\\ud800", "half_character"),
        ('{"a": ' + "[" * 120 + "]" * 120 + "}", "a", "too_deep"),
        ('{"a": ' + '{"b": ' * 120 + "1" + "}" * 121, "a", "too_deep"),
        ('{"a": {"b": [' + "0," * 100_000 + "0]}}", "a", "too_many_items"),
        ("{" + ",".join(f'"k{i}": 0' for i in range(1001)) + "}", "", "too_many_columns"),
        ("[1, 2]", "", "not_an_object"),
    ],
)
def test_rows_that_could_not_be_given_back_are_refused(row: str, name: str, code: str, as_document: bool) -> None:
    good = '{"a": "\\ud83d\\ude00 \\\\ud83d", "b": {"a": [{"a": 1}]}}'
    data = f"[{good}, {row}, {good}]" if as_document else f"{good}\n{row}\n{good}\n"
    found = read(data.encode())
    assert [(error.line, error.field, error.code) for error in found.errors] == [(2, name, code)]
    assert [line for _, line, _ in found.rows] == [1, 3]


@pytest.mark.parametrize(
    ("data", "line", "code"),
    [
        (b'{"a": 1},\n', 1, "trailing_comma"),
        (b'{"a": 1}\n{"a": 1,}\n', 2, "trailing_comma"),
        (b'[{"a": 1},]', None, "trailing_comma"),
        (b'[{"a": 1,}]', None, "trailing_comma"),
        (b'{"train": [{"a": 1}],}', None, "trailing_comma"),
        (b'{"a": 1}{"a": 2}{"a": 3}', 1, "line_ends_lost"),
        (b"{'a': 1}\n", 1, "single_quotes"),
        (b'[{"a": 1}', None, "cut_off"),
        (b'{\n"a": 1\n}\n{\n"a":', None, "cut_off"),
        (b'[{"a": 1}] [', None, "more_after_end"),
        (b'{"train": [{"a": 1}], "validation": "AAA"}', None, "not_a_list"),
        (b'{"train": [{"a": 1}], "data": [{"a": 1}]}', None, "unread_list"),
        (b'{"data": [{"a": 1}], "rows": [{"a": 1}]}', None, "unread_list"),
        (b'{"columns": ["a"], "data": [[1, 2]]}', 1, "cells_and_columns"),
        (b'{"a": {"0": 1}, "b": {"1": 2}}', None, "not_columns"),
        (b'{"a": {"0": 1, "0": 2}}', None, "duplicate_key"),
        (b"", None, "empty_file"),
        (b" \n\n", None, "empty_file"),
    ],
)
def test_what_is_wrong_with_json_is_named(data: bytes, line: int | None, code: str) -> None:
    for piece in (1, 1000):
        error = read(data, piece).errors[0]
        assert (error.line, error.code) == (line, code)


def no_rows(tmp_path: Path) -> dict[str, bytes]:
    database = tmp_path / "rows.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("create table rows (prompt text)")
    connection.close()
    import numpy as np

    return {
        "git_lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "html": b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
        "xml": b"<?xml version='1.0'?><rows/>",
        "yaml": b"- prompt: x\n  chosen: y\n",
        "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "png": b"\x89PNG\r\n\x1a\n" + bytes(20),
        "jpeg": b"\xff\xd8\xff\xe0" + bytes(20),
        "pickle": pickle.dumps({"rows": ROWS}),
        "safetensors": save({"w": np.zeros(2)}),
        "sqlite": database.read_bytes(),
        "form": b'--x1\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\r\n--x1--\r\n',
        "docx": zipped({"[Content_Types].xml": b"<Types/>", "word/document.xml": b"<document/>"}),
        "doc": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600) + "WordDocument".encode("utf-16-le"),
        "tar": b"rows.jsonl" + bytes(247) + b"ustar" + bytes(250),
        "binary": bytes(range(256)) * 4,
    }


def test_one_sentence_says_what_else_a_file_is(tmp_path: Path) -> None:
    files = no_rows(tmp_path)
    for kind, data in files.items():
        found = read(data)
        assert [(error.code, error.params["kind"]) for error in found.errors] == [("not_rows", kind)]
        assert read(data, 1).errors == found.errors
        assert "\n" not in found.errors[0].reason
    assert "“Sign in”" in reason(files["html"]).reason


def test_a_torch_file_is_a_pickle() -> None:
    assert reason(zipped({"archive/data.pkl": pickle.dumps({}), "archive/version": b"3"})).params["kind"] == "pickle"


def test_the_report_tells_kind_code_page_and_whether_the_file_is_stored_as_it_came(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    header, row = "prompt,chosen,rejected\n", "س,نعم,لا\n"
    path.write_text(header + row, encoding="utf-16")
    report = check_file(path)
    assert (report.format, report.file_kind, report.encoding, report.is_plain) == ("jsonl", "csv", "utf-16", False)
    path.write_text(json.dumps({"prompt": "س", "chosen": "نعم", "rejected": "لا"}))
    report = check_file(path)
    assert (report.format, report.file_kind, report.encoding, report.is_plain) == ("jsonl", "jsonl", None, True)


def _outcome(data: bytes, piece: int) -> Any:
    try:
        return read(data, piece)
    except DataInvalid as error:
        return error.message


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 20))
def test_random_bytes_raise_nothing_but_bad_data(data: bytes, piece: int) -> None:
    assert _outcome(data, piece) == _outcome(data, len(data) + 1)


@pytest.mark.parametrize("key", ["NaN", "1e999", "-Infinity", '{"a": NaN}', '{"a": 1, "a": 2}', '["\\ud800"]'])
@pytest.mark.parametrize("piece", [1, 1000])
def test_a_value_that_no_row_may_hold_is_no_key_either(key: str, piece: int) -> None:
    found = read(b'{"train": [], ' + key.encode() + b": 1}", piece)
    assert [error.reason for error in found.errors] == ["not valid JSON: keys must be in double quotes"]


pieces_of_json = st.sampled_from(
    [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        '"a"',
        '"train"',
        '"rows"',
        "1",
        "1e999",
        "NaN",
        "\n",
        '"\\ud800"',
        " ",
        "\ufeff",
        "'",
        "\r",
        "x",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(pieces_of_json, max_size=25), st.integers(1, 20))
def test_almost_json_raises_nothing_but_bad_data(parts: list[str], piece: int) -> None:
    data = "".join(parts).encode()
    assert _outcome(data, piece) == _outcome(data, len(data) + 1)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=3), values, max_size=3), min_size=1, max_size=4),
    st.booleans(),
    st.integers(1, 30),
)
def test_any_rows_come_back(rows: list[dict[str, Any]], ascii_only: bool, piece: int) -> None:
    lines = [json.dumps({"prompt": "س", **row}, ensure_ascii=ascii_only).encode("utf-8", "replace") for row in rows]
    for data in (b"\n".join(lines), b"[" + b",\n".join(lines) + b"]"):
        found = read(data, piece)
        assert not found.errors
        assert found.values == [json.loads(line) for line in lines]


@pytest.mark.parametrize("piece", [2**16, 2**20, 2**25])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_that_is_too_long_is_an_error_of_its_row_in_pieces_of_any_size(piece: int, end: bytes) -> None:
    long = b'{"a": "' + b"x" * 9 * 2**20 + b'"}'
    found = read(b'{"a": 1}\n' + long + b'\n{"a": 2}\n' + long + end, piece)
    assert [(line, row) for _, line, row in found.rows] == [(1, {"a": 1}), (3, {"a": 2})]
    assert [(error.line, error.code) for error in found.errors] == [(2, "row_too_long"), (4, "row_too_long")]
