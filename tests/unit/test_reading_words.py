"""Everything that can be wrong with a file has a code with words in both languages, and the values that the words take."""

import gzip
import io
import json
import re
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tests.reading_codes import ROOT, codes
from tests.workbooks import xlsx, zipped
from trainer_core.errors import DataInvalid, Detail
from trainer_core.reading.unreadable import not_rows
from trainer_core.reading_options import ReadingOptions
from trainer_core.rows import RowChecker
from trainer_core.wording import LANGUAGES, catalogue, say, worded

Q, GOOD, BAD = "ما عكس كبير؟", "صغير.", "لا أدري."
PAIR = {"prompt": Q, "chosen": GOOD, "rejected": BAD}
KTO = {"prompt": Q, "completion": GOOD, "label": True}
TURNS = [{"role": "user", "content": Q}, {"role": "assistant", "content": GOOD}]
CSV = f"prompt,chosen,rejected\n{Q},{GOOD},{BAD}\n"
PKU = {"prompt": Q, "response_0": GOOD, "response_1": BAD, "better_response_id": 0, "safer_response_id": 0}
HELPSTEER = {"prompt": Q, "response_1": GOOD, "response_2": BAD, "preference_strength": -1}
VOTES = {"prompt": Q, "answer_1": GOOD, "answer_2": BAD, "preferred": 1}
DIALOGUES = {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {GOOD}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {BAD}"}
SHEET = [list(PAIR), list(PAIR.values())]
# An unpaired surrogate, as JSON escapes it.
HALF = "\ud83d"


def rows(*values: Any) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def pair(**more: Any) -> bytes:
    return rows({**PAIR, **more})


def in_parquet(row: dict[str, Any]) -> bytes:
    data = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([row]), data)
    return data.getvalue()


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else 1


# For each code a file that has it, and the options that it is read with.
FILES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "already_unicode": (CSV.encode(), {"encoding": "cp1256"}),
    "answer_number": (rows({**PKU, "better_response_id": 7, "safer_response_id": 7}), {}),
    "cells_and_columns": (CSV.encode() + b"1,2,3,4\n", {}),
    "cut_off": (b'[{"prompt": "a"}', {}),
    "dialogue": (rows(*[DIALOGUES] * 60, {**DIALOGUES, "chosen": GOOD}), {}),
    "duplicate_column": (b"a,b,a\n1,2,3\n", {}),
    "duplicate_key": (b'{"prompt": 1, "prompt": 2}\n', {}),
    "empty": (pair(chosen=" "), {}),
    "empty_file": (b"", {}),
    "empty_workbook": (xlsx({"S": SHEET[:1]}), {}),
    "empty_zip": (zipped({}), {}),
    "encoding_unclear": (CSV.encode("cp1256"), {}),
    "expands": (gzip.compress(b" " * 2**20) * 66, {}),
    "file_cut_off": (gzip.compress(rows(PAIR))[:-5], {}),
    "half_character": (rows({"prompt": HALF}), {}),
    "header_alone": (b"prompt,chosen,rejected\n", {}),
    "history": (rows({**PAIR, "history": 7}), {}),
    "label": (rows({**KTO, "label": "maybe"}), {}),
    "label_score": (rows(*[KTO] * 60, {**KTO, "label": -3}), {}),
    "late_column": (rows(*[PAIR] * 60, {**PAIR, "system_prompt": "s"}), {}),
    "line_ends_lost": (rows(PAIR).strip() * 2, {}),
    "map_column": (pair(), {"map": {"prompt": "nothing"}}),
    "map_field": (pair(), {"map": {"answer": "chosen"}}),
    "map_incomplete": (rows({"a": 1, "b": 2, "c": 3}), {"map": {"prompt": "a"}}),
    "map_unclear": (rows({"a": 1, "b": 2, "c": 3}), {}),
    "missing": (rows({"prompt": Q, "chosen": GOOD}), {}),
    "more_after_end": (b"[]x", {}),
    "no_answer": (pair(chosen=[{"role": "user", "content": "a"}]), {}),
    "no_content": (pair(chosen=[{"role": "assistant", "content": 7}]), {}),
    "no_encoding": (in_parquet(PAIR), {"encoding": "cp1256"}),
    "no_fields": (rows({"x": 1}), {}),
    "no_json_messages": (rows(*[{**PAIR, "chosen": json.dumps(TURNS[1:])}] * 60, PAIR), {}),
    "no_last_answer": (pair(chosen=[*TURNS, TURNS[0]]), {}),
    "no_message": (pair(chosen=["a"]), {}),
    "no_messages": (pair(prompt=[]), {}),
    "no_preference": (rows({**HELPSTEER, "preference_strength": 0}), {}),
    "no_rows": (b"[]", {}),
    "no_rows_here": (b"hello\n", {}),
    "no_scores": (rows({"instruction": Q, "generations": [GOOD], "ratings": [1]}), {}),
    "no_sheet": (CSV.encode(), {"sheet": "S"}),
    "no_text": (pair(chosen=7), {}),
    "not_joined": (rows({"instruction": Q, "input": [1], "chosen": GOOD, "rejected": BAD}), {}),
    "no_threshold": (pair(), {"threshold": 3}),
    "no_training_rows": (json.dumps({"train": [], "validation": [PAIR]}).encode(), {}),
    "not_a_list": (json.dumps({"train": [PAIR], "validation": "AAA"}).encode(), {}),
    "not_an_object": (b"[1]\n[2]\n", {}),
    "not_columns": (b'{"a": {"0": 1}, "b": {"1": 2}}', {}),
    "not_finite": (b'{"prompt": NaN}\n', {}),
    "not_json": (rows(PAIR) + b'{"prompt": \n', {}),
    "not_rows": (b"%PDF-1.7", {}),
    "not_utf8": (pair() + b'{"prompt": "\xff"}\n', {}),
    "not_valid": (b"PAR1" + b"x" * 600, {}),
    "null_text": (pair(chosen="NULL"), {}),
    "open_quote": (CSV.encode() + b'"a', {}),
    "other_head": (pair(chosen=TURNS, rejected=[{"role": "user", "content": "?"}, TURNS[1]]), {}),
    "other_kind": (rows(PAIR, KTO), {}),
    "other_prompt": (pair(prompt="?", chosen=TURNS, rejected=[TURNS[0], {"role": "assistant", "content": BAD}]), {}),
    "other_system": (pair(prompt=[{"role": "system", "content": "a"}, TURNS[0]], system="b"), {}),
    "packed_too_often": (zipped({"b.zip": zipped({"a.zip": zipped({"a.csv": CSV})})}), {}),
    "packed_twice": (gzip.compress(gzip.compress(b"a")), {}),
    "part": (pair(chosen=[{"type": "image"}]), {}),
    "preferred": (rows({**VOTES, "preferred": "maybe"}), {}),
    "preferred_zero": (rows({**VOTES, "preferred": 0}, VOTES), {}),
    "prompt_ends_with_answer": (pair(prompt=TURNS), {}),
    "quotes": (CSV.encode() + b'"a"x,b\n', {}),
    "role": (pair(chosen=[{"role": "wizard", "content": "a"}]), {}),
    "row_too_long": (rows({"prompt": "a" * 5 * 2**20}), {}),
    "same_answers": (pair(rejected=GOOD), {}),
    "score": (rows({**HELPSTEER, "preference_strength": "much"}), {}),
    "several_files": (zipped({"a.csv": CSV, "b.csv": CSV}), {}),
    "sheet_unclear": (xlsx({"A": SHEET, "B": SHEET}), {}),
    "single_quotes": (rows(PAIR) + b"{'prompt': 1}\n", {}),
    "system_unclear": (
        rows({**PAIR, "system_prompt": "a", "system_message": "b", "question": Q}),
        {"map": {"prompt": "question"}},
    ),
    "threshold_unclear": (rows({**KTO, "label": 5}, {**KTO, "label": 1}), {}),
    "too_deep": (rows({"prompt": deep(120)}), {}),
    "too_many_columns": (rows({f"c{number}": 1 for number in range(1001)}), {}),
    "too_many_items": (rows({"prompt": [1] * 100_001}), {}),
    "tools": (pair(tools=[{"name": "a"}]), {}),
    "trailing_comma": (rows(PAIR) + rows(PAIR).strip() + b",\n", {}),
    "unknown_encoding": (CSV.encode("cp1256"), {"encoding": "klingon"}),
    "unknown_sheet": (xlsx({"A": SHEET}), {"sheet": "B"}),
    "unread_list": (json.dumps({"train": [PAIR], "test": [PAIR]}).encode(), {}),
    "verdict_unclear": (rows({**PKU, "safer_response_id": 1}), {}),
    "wrong_encoding": (b"prompt,chosen,rejected\na,\x81,c\n", {"encoding": "cp1252"}),
}
# What a file alone does not do: a process that runs out of memory, absent packages, an encrypted or a very large file, and
# a clash of layouts, which another test proves to be impossible.
MADE: dict[str, Detail] = {
    "encoding_unknown": Detail("encoding", say("encoding_unknown")),
    "needs_too_much": Detail("", say("needs_too_much", kind="XLSX")),
    "not_installed": Detail("", say("not_installed", package="python-calamine")),
    "password": Detail("", say("password")),
    "several_layouts": Detail("map", say("several_layouts", layouts=["orca"], fields=["prompt"], choices=["a"])),
    "too_large": Detail("", say("too_large", most_mib=256)),
}


def details(data: bytes, options: dict[str, Any]) -> list[Detail]:
    """Everything that is said about a file: its errors, or its warnings."""
    checker = RowChecker(options=ReadingOptions(**options))
    try:
        checker.feed(data)
        checker.close()
    except DataInvalid as error:
        return error.details
    return checker.report.warnings


def test_every_code_has_a_file_that_provokes_it() -> None:
    assert set(FILES) | set(MADE) == codes()


def test_every_code_is_documented() -> None:
    page = (ROOT.parent / "docs" / "errors.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| `code` of a detail .*\n\|---\|---\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    named = [code for table in tables for row in table.splitlines() for code in re.findall(r"`(\w+)`", row.split(" | ")[0])]
    assert sorted(named) == sorted(codes())


@pytest.mark.parametrize("code", sorted([*FILES, *MADE]))
def test_a_reason_is_worded_in_both_languages_from_its_stored_code_and_values(code: str) -> None:
    if code in FILES:
        found = {detail.code: detail for detail in details(*FILES[code])}
        assert code in found, found
        detail = found[code]
    else:
        detail = MADE[code]
    stored = json.loads(json.dumps(detail.as_dict(), ensure_ascii=False, allow_nan=False).encode())
    assert stored["reason"] == worded(code, stored["params"])
    arabic = worded(code, stored["params"], "ar")
    assert re.search(r"[\u0600-\u06ff]", arabic), arabic
    assert not re.search(r"[{}]", re.sub("\u2068.*?\u2069", "", arabic, flags=re.DOTALL)), arabic


def test_a_whole_error_is_worded_in_both_languages_from_its_stored_form() -> None:
    data = pair() + rows(*[{"prompt": Q, "chosen": GOOD}] * 12, {**PAIR, "prompt": " "}, {**PAIR, "chosen": " "})
    with pytest.raises(DataInvalid) as caught:
        _checked(data)
    stored = json.loads(json.dumps(caught.value.as_dict()))
    assert stored["message"] == "12 rows: rejected is missing (lines 2, 3, 4, …) (and 2 more errors)"
    assert worded(stored["message_code"], stored["params"]) == stored["message"]
    arabic = re.sub("[\u2068\u2069]", "", worded(stored["message_code"], stored["params"], "ar"))
    assert arabic == "12 صفًا: الحقل rejected مفقود (الأسطر 2، 3، 4، …) (وخطآن آخران)"


def _checked(data: bytes) -> None:
    checker = RowChecker()
    checker.feed(data)
    checker.close()


def test_every_kind_of_file_that_is_refused_has_words() -> None:
    program = (ROOT / "reading" / "whole_file_rows.py").read_text(encoding="utf-8")
    source = (ROOT / "reading" / "unreadable.py").read_text(encoding="utf-8")
    kinds = set(re.findall(r'\{"kind": "(\w+)"\}', program)) | {"docx", "pptx"}
    kinds |= (
        set(re.findall(r'not_rows\("(\w+)"\)', source)) | set(re.findall(r'\(\d+, b".*", "(\w+)"\)', source)) | {"binary"}
    )
    words = {not_rows(kind).params["what"].code for kind in kinds} | {"file.html_titled"}
    for language in LANGUAGES:
        assert {code for code in catalogue(language) if code.startswith("file.")} == words
