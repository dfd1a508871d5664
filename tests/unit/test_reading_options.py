"""Options that mean nothing for a file are refused by name, and texts that look like missing values are counted."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tafdil.cli import app
from tests.layout_samples import SAMPLES
from tests.unit.test_reading_words import CSV, KTO, PAIR, SHEET, in_parquet, rows
from tests.workbooks import ods, xlsx, zipped
from trainer_core.errors import DataInvalid, Detail
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_conversion import convert
from trainer_core.rows import RowChecker, RowReport, broken_rows, check_file

TEXTS: dict[str, bytes] = {
    "csv": CSV.encode(),
    "tsv": CSV.replace(",", "\t").encode(),
    "jsonl": rows(PAIR),
    "json": json.dumps([PAIR]).encode(),
    "json_rows": json.dumps({"rows": [PAIR]}).encode(),
    "json_objects": json.dumps(PAIR, indent=1).encode(),
    "csv.gz": gzip.compress(CSV.encode()),
    "csv.zip": zipped({"a.csv": CSV}),
    "json_columns": json.dumps({name: {"0": text} for name, text in PAIR.items()}).encode(),
}
BOOKS: dict[str, bytes] = {"xlsx": xlsx({"S": SHEET}), "ods": ods(SHEET), "xlsx.zip": zipped({"a.xlsx": xlsx({"S": SHEET})})}
OTHERS: dict[str, bytes] = {"parquet": in_parquet(PAIR), "parquet.gz": gzip.compress(in_parquet(PAIR))}
ALL = TEXTS | BOOKS | OTHERS


def checked(data: bytes, **options: Any) -> RowReport:
    checker = RowChecker(options=ReadingOptions(**options))
    checker.feed(data)
    return checker.close()


def refused(data: bytes, **options: Any) -> Detail:
    with pytest.raises(DataInvalid) as caught:
        checked(data, **options)
    (detail,) = caught.value.details
    assert caught.value.message == f"{detail.field}: {detail.reason}"
    return detail


@pytest.mark.parametrize("kind", ALL)
def test_the_samples_are_of_their_kinds(kind: str) -> None:
    assert checked(ALL[kind]).file_kind == kind


@pytest.mark.parametrize("kind", TEXTS | OTHERS)
def test_a_sheet_of_a_file_without_sheets_is_refused(kind: str) -> None:
    found = refused(ALL[kind], sheet="S")
    assert (found.field, found.code, found.params["kind"]) == ("sheet", "no_sheet", kind)


@pytest.mark.parametrize("kind", BOOKS)
def test_the_sheet_of_a_workbook_is_read(kind: str) -> None:
    assert checked(ALL[kind], sheet="S").train_rows == 1


@pytest.mark.parametrize("kind", BOOKS | OTHERS)
def test_an_encoding_of_a_file_that_is_no_text_is_refused(kind: str) -> None:
    found = refused(ALL[kind], encoding="cp1256")
    assert (found.field, found.code, found.params["kind"]) == ("encoding", "no_encoding", kind)


@pytest.mark.parametrize("kind", TEXTS)
def test_the_encoding_of_a_text_may_be_named_where_it_has_one(kind: str) -> None:
    assert checked(ALL[kind], encoding="utf-8").train_rows == 1


def test_the_names_of_kinds_are_those_that_people_know() -> None:
    for kind, name in (("csv", "CSV"), ("parquet.gz", "Parquet"), ("json_rows", "JSON"), ("jsonl", "JSONL"), ("tsv", "TSV")):
        assert f"this file is {name} " in refused(ALL[kind], sheet="S").reason


@pytest.mark.parametrize("data", [rows(PAIR), CSV.encode(), rows(KTO, {**KTO, "label": "لا"})])
@pytest.mark.parametrize("on_invalid", ["refuse", "skip"])
def test_a_threshold_without_scores_is_refused(data: bytes, on_invalid: str) -> None:
    found = refused(data, threshold=3, on_invalid=on_invalid)
    assert (found.field, found.code) == ("threshold", "no_threshold")


@pytest.mark.parametrize("layout", [name for name in SAMPLES if name != "own"])
def test_only_layouts_with_scores_take_a_threshold(layout: str) -> None:
    for sample in SAMPLES[layout].values():
        data = rows(*sample)
        if layout in ("scored", "helpsteer"):
            assert checked(data, threshold=3).train_rows == len(sample)
        else:
            assert refused(data, threshold=3).code == "no_threshold"


def test_scores_of_zero_and_one_take_a_threshold() -> None:
    report = checked(rows({**KTO, "label": 0.4}, {**KTO, "label": 1}), threshold=0.5)
    assert (report.train_rows, report.desirable_rows) == (2, 1)


def test_every_way_to_read_a_file_refuses_the_same_options(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(CSV, encoding="utf-8")
    options = ReadingOptions(sheet="S")
    for read in (check_file, lambda path, **more: convert(path, tmp_path / "out", **more)):
        with pytest.raises(DataInvalid, match="has no sheets"):
            read(path, options=options)
    with pytest.raises(DataInvalid, match="has no sheets"):
        list(broken_rows(path, options))
    for command in ("check", "convert"):
        arguments = ["data", command, str(path), *([str(tmp_path / "out")] if command == "convert" else [])]
        for option, fix in ((["--sheet", "S"], "leave out the sheet"), (["--threshold", "3"], "leave out the threshold")):
            result = CliRunner().invoke(app, [*arguments, *option])
            assert (result.exit_code, result.stdout) == (3, "")
            assert fix in " ".join(result.stderr.split())


# -- texts that stand for nothing

NULLS = ("NULL", "null", "None", "nan", "NaN", "N/A", "#N/A", "<NA>", " null ")


@pytest.mark.parametrize("word", NULLS)
@pytest.mark.parametrize("field", ["chosen", "prompt"])
def test_a_word_for_a_missing_value_is_kept_and_counted(word: str, field: str) -> None:
    lines = [PAIR, {**PAIR, field: word}, PAIR, {**PAIR, field: word}]
    report = checked(rows(*lines))
    assert (report.train_rows, report.errors, report.is_plain) == (4, [], True)
    (warning,) = report.warnings
    assert (warning.field, warning.code, warning.params) == (field, "null_text", {"value": word.strip()})
    assert (warning.line, warning.count, warning.lines) == (2, 2, (2, 4))
    assert "is kept as text" in warning.reason


def test_a_warning_names_the_column_of_the_file() -> None:
    found: list[Any] = []
    checker = RowChecker(lambda _part, row, _line: found.append(row))
    checker.feed("السؤال,الإجابة الأفضل,الإجابة الأسوأ\nما لونه؟,أحمر,NULL\n".encode())
    (warning,) = checker.close().warnings
    assert (warning.field, warning.line) == ("الإجابة الأسوأ", 2)
    assert found[0]["rejected"] == "NULL"


@pytest.mark.parametrize("text", ["null and void", "Nonet", "لا شيء", "nano", "0"])
def test_other_texts_are_no_warning(text: str) -> None:
    assert checked(rows({**PAIR, "chosen": text})).warnings == []


def test_only_required_fields_are_looked_at_in_any_form() -> None:
    assert checked(rows({**PAIR, "note": "NULL"})).warnings == []
    turn = [{"role": "assistant", "content": "None"}]
    assert [each.field for each in checked(rows({**PAIR, "chosen": turn})).warnings] == ["chosen"]


def test_many_warnings_take_bounded_room() -> None:
    report = checked(rows(*({**PAIR, "chosen": "NULL"} for _ in range(500))))
    (warning,) = report.warnings
    assert (warning.count, len(warning.lines)) == (500, 10)
