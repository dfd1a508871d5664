"""Files that could be read wrongly without a word: each is read right, asked about, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tafdil.cli.context import Usage
from tafdil.cli.reading import options_of
from tests.layout_samples import options, read, said
from trainer_core.errors import DataInvalid, DataUnclear
from trainer_core.layouts.words import as_label
from trainer_core.row_conversion import RowsTooLarge, convert
from trainer_core.row_rules import Row
from trainer_core.rows import check_file

PAIR = {"prompt": "ما عاصمة مصر؟", "chosen": "القاهرة.", "rejected": "لا."}
LABELLED = {"prompt": "ما عاصمة مصر؟", "completion": "القاهرة."}
MANY = 60


def rows_of(data: str, tmp_path: Path, **said_of_it: Any) -> list[Row]:
    path = tmp_path / "rows"
    path.write_text(data, encoding="utf-8")
    found: list[Row] = []
    check_file(path, lambda _part, row, _line: found.append(row), options(**said_of_it))
    return found


@pytest.mark.parametrize("blank", ["", "\n", "\n  \n"])
def test_the_nameless_index_of_a_table_with_tabs_is_a_column(blank: str, tmp_path: Path) -> None:
    """Without its place in the header, each cell would be read as its neighbour, and the prompt as the chosen answer."""
    table = f"{blank}\tprompt\tchosen\trejected\tnote\n0\tس\tنعم\tلا\t\n"
    assert rows_of(table, tmp_path) == [{"column 1": "0", "prompt": "س", "chosen": "نعم", "rejected": "لا"}]


def test_a_minus_one_is_no_yes(tmp_path: Path) -> None:
    assert [as_label(text) for text in ("-1", "_1", "- 1", "-1.0")] == [None] * 4
    assert (as_label("thumbs-up"), as_label("غير_مقبول"), as_label("thumbs_down")) == (True, False, False)
    with pytest.raises(DataUnclear, match="-1 to 1"):
        rows_of("prompt,completion,label\nس,نعم,-1\nس,لا,1\n", tmp_path)


def test_arabic_digits_are_digits() -> None:
    assert [as_label(digit) for digit in "١٠۱۰٢"] == [True, False, True, False, None]
    answers = {"prompt": "س", "answer_1": "أ", "answer_2": "ب"}
    _, found = read([{**answers, "preferred": "١"}, {**answers, "preferred": "٢"}])
    assert [row["chosen"] for row in found] == ["أ", "ب"]


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), float("-inf")])
def test_a_threshold_is_a_number(threshold: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        options(threshold=threshold)


@pytest.mark.parametrize("on_invalid", ["refuse", "skip"])
@pytest.mark.parametrize("column", ["label", "rating"])
def test_stars_that_begin_with_ones_are_scores(column: str, on_invalid: str) -> None:
    """One star is the worst, and the number 1 alone would be a yes."""
    rows = [{**LABELLED, column: "1"}] * MANY + [{**LABELLED, column: "5"}]
    with pytest.raises(DataUnclear, match=f"the column {column} holds scores, 1 to 5 ") as caught:
        read(rows, options(on_invalid=on_invalid))
    assert caught.value.question
    assert (caught.value.question.about, caught.value.question.choices) == ("threshold", (column,))
    assert [row["label"] for row in read(rows, options(threshold=3))[1]] == [False] * MANY + [True]


@pytest.mark.parametrize("prompt", ["", " \n", []])
@pytest.mark.parametrize("before", [{"system": "كن مهذبا."}, {"history": [["مرحبا", "أهلا"]]}])
def test_what_goes_before_a_prompt_is_no_prompt(prompt: Any, before: Row) -> None:
    with pytest.raises(DataInvalid, match=r"prompt: (is empty|has no messages)"):
        read([{**PAIR, "prompt": prompt, **before}])


@pytest.mark.parametrize("names", [("system_prompt", "system_message"), ("system", "system_prompt")])
def test_of_two_system_texts_one_is_asked_for(names: tuple[str, str]) -> None:
    row = {**PAIR, names[0]: "كن مهذبا.", names[1]: "كن موجزا."}
    with pytest.raises(DataUnclear, match=f"the columns {names[0]}, {names[1]} could hold the system text"):
        read([row])
    with pytest.raises(DataUnclear, match="could hold the system text"):
        read([row], options(map={"prompt": "prompt"}))
    _, found = read([row], options(map={"system": names[1]}))
    assert found[0]["prompt"][0] == said("system", "كن موجزا.")


def test_a_map_leaves_the_system_text_to_its_name() -> None:
    row = {"q": "س", "chosen": "نعم", "rejected": "لا", "system_prompt": "كن مهذبا."}
    report, found = read([row], options(map={"prompt": "q"}))
    assert found[0]["prompt"] == [said("system", "كن مهذبا."), said("user", "س")]
    assert (report.mapping["system"], report.unused) == ("system_prompt", [])


def test_a_converted_row_has_nothing_that_is_read_the_second_time(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text(json.dumps({**PAIR, "sys": "كن مهذبا.", "system_prompt": "كن موجزا."}), encoding="utf-8")
    convert(source, target, options(map={"system": "sys"}))
    found: list[Row] = []
    check_file(target, lambda _part, row, _line: found.append(row))
    assert [turn["content"] for turn in found[0]["prompt"]] == ["كن مهذبا.", PAIR["prompt"]]


def test_two_system_messages_are_one_or_an_error() -> None:
    history = [said("system", "كن مهذبا."), said("user", "مرحبا"), said("assistant", "أهلا")]
    _, found = read([{**PAIR, "system": "كن مهذبا.", "history": history}])
    assert [turn["role"] for turn in found[0]["prompt"]] == ["system", "user", "assistant", "user"]
    with pytest.raises(DataInvalid, match="system: differs from the system message"):
        read([{**PAIR, "system": "كن موجزا.", "history": history}])
    with pytest.raises(DataInvalid, match="history: differs from the system message"):
        read([{**PAIR, "prompt": [said("system", "كن موجزا."), said("user", "س")], "history": history}])


@pytest.mark.parametrize(
    ("first", "late"),
    [
        (PAIR, {"system_prompt": "كن مهذبا."}),
        ({"instruction": "لخص", "response": "نعم", "rating": "good"}, {"input": "النص"}),
        ({"question": "س", "good": "نعم", "bad": "لا"}, {"النظام": "كن مهذبا."}),
    ],
)
def test_a_column_with_meaning_that_comes_late_is_named(first: Row, late: Row) -> None:
    """It is empty in the rows that decide the layout."""
    (column,) = late
    rows = [first] * MANY + [{**first, **late}] * 2
    with pytest.raises(DataInvalid, match=f"2 rows: {column} is empty in the first rows") as caught:
        read(rows)
    assert (caught.value.details[0].code, caught.value.details[0].lines) == ("late_column", (61, 62))
    assert read([first] * MANY + [{**first, "note": "x"}])[0].unused == ["note"]


def test_a_map_may_name_a_column_that_comes_late(tmp_path: Path) -> None:
    table = "prompt,chosen,rejected,sys\n" + "س,نعم,لا,\n" * MANY + "س,نعم,لا,كن مهذبا.\n"
    found = rows_of(table, tmp_path, map={"system": "sys"})
    assert (found[0]["prompt"], found[-1]["prompt"][0]) == ("س", said("system", "كن مهذبا."))
    with pytest.raises(DataInvalid, match="no column sis, or it is empty in every row"):
        rows_of(table, tmp_path, map={"system": "sis"})


def test_of_a_pair_with_a_label_the_label_is_not_read() -> None:
    report, _ = read([{**PAIR, "completion": "نعم", "label": False}])
    assert (report.unused, set(report.mapping)) == (["completion", "label"], {"prompt", "chosen", "rejected"})


@pytest.mark.parametrize(
    ("columns", "late"),
    [
        ({"generations": ["أ", "ب"], "ratings": [1, 2]}, {"generations": 5, "ratings": 3}),
        ({"generations": ["أ", "ب"], "ratings": [1, 2]}, {"generations": ["أ", "ب"], "ratings": 3}),
        (
            {"completions": [{"response": "أ", "overall_score": 1}, {"response": "ب", "overall_score": 2}]},
            {"completions": [1, 2]},
        ),
        (
            {"completions": [{"response": "أ", "overall_score": 1}, {"response": "ب", "overall_score": 2}]},
            {"completions": 1},
        ),
    ],
)
def test_a_late_row_without_scored_answers_is_an_error_of_its_line(columns: Row, late: Row) -> None:
    with pytest.raises(DataInvalid) as caught:
        read([{"instruction": "س", **columns}] * MANY + [{"instruction": "س", **late}])
    assert caught.value.details[0].line == MANY + 1


def test_the_number_of_the_better_answer_is_no_answer() -> None:
    row = {"السؤال": "س", "الإجابة 1": "أ", "الإجابة 2": "ب", "الأفضل": "1", "الأسوأ": "2"}
    with pytest.raises(DataUnclear):
        read([row])


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_row_may_have_a_column_with_the_name_of_a_part(part: str, tmp_path: Path) -> None:
    row = {**PAIR, part: True}
    for text in (json.dumps(row), f"{json.dumps(row)}\n{json.dumps(row)}\n"):
        assert rows_of(text, tmp_path)[0] == row
    assert rows_of(json.dumps({part: [PAIR], "train": [PAIR]}), tmp_path)[-1] == PAIR
    with pytest.raises(DataInvalid, match="must be a list of rows"):
        rows_of(json.dumps({part: {"a": 1}}), tmp_path)


def test_an_empty_history_in_a_table_is_none(tmp_path: Path) -> None:
    table = 'instruction,chosen,rejected,history\nس,نعم,لا,[]\nس,نعم,لا,"[[""مرحبا"",""أهلا""]]"\n'
    assert [len(row["prompt"]) for row in rows_of(table, tmp_path)] == [1, 3]
    assert rows_of(table.splitlines()[0] + "\nس,نعم,لا,[]\n", tmp_path)[0]["prompt"] == "س"


def test_a_conversion_writes_no_more_than_it_may(tmp_path: Path) -> None:
    """Blank lines count: a packed file may have millions of them before a row."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text(json.dumps({**PAIR, "system": "كن مهذبا."}) + "\n" * 2000 + json.dumps(PAIR), encoding="utf-8")
    with pytest.raises(RowsTooLarge):
        convert(source, target, most_bytes=2000)
    assert list(tmp_path.iterdir()) == [source]
    convert(source, target, most_bytes=3000)


@pytest.mark.parametrize("on_invalid", ["refuse", "skip"])
def test_a_better_answer_of_zero_or_one_is_not_guessed(on_invalid: str) -> None:
    """Read as 1 or 2, each 1 would prefer the first answer, where 0 may be the first and 1 the second."""
    rows = [{"prompt": "س", "first": "أ", "second": "ب", "best": best} for best in [1] * MANY + [0, 2]]
    how = options(map={"answer_1": "first", "answer_2": "second", "preferred": "best"}, on_invalid=on_invalid)
    for some in (rows[:-1], [rows[0], rows[-2]]):
        with pytest.raises(DataInvalid, match="given as 0 or 1"):
            read(some, how)
    if on_invalid == "skip":
        report, found = read([rows[0], *rows[-2:]], how)
        assert (report.skipped_rows, [row["chosen"] for row in found]) == (1, ["أ", "ب"]), "here 0 is a tie"


def test_rows_with_an_index_that_the_header_lacks_are_refused(tmp_path: Path) -> None:
    """R writes such tables. Where the last cell is empty, each cell would be read as its neighbour."""
    with pytest.raises(DataInvalid, match="has 5 cells for 4 columns"):
        rows_of("prompt,chosen,rejected,note\n1,س,نعم,لا,\n", tmp_path)
    found = rows_of("prompt,chosen,rejected\nس,نعم,لا,\n", tmp_path)
    assert [row["rejected"] for row in found] == ["لا"], "a mark behind the last cell does no harm"


def test_a_verdict_that_comes_late_is_asked_for() -> None:
    row = {"prompt": "س", "response_0": "أ", "response_1": "ب", "better_response_id": 0}
    rows = [row] * MANY + [{**row, "safer_response_id": 1}]
    with pytest.raises(DataUnclear, match="point to different answers"):
        read(rows)
    assert len(read(rows, options(map={"preferred": "better_response_id"}))[1]) == MANY + 1


def test_turns_that_differ_in_their_calls_are_no_common_head() -> None:
    def whole(argument: int, answer: str) -> list[Row]:
        call = {"role": "assistant", "content": None, "tool_calls": [{"arguments": argument}]}
        return [said("user", "س"), call, {"role": "tool", "content": "1"}, said("assistant", answer)]

    assert read([{"chosen": whole(1, "نعم"), "rejected": whole(1, "لا")}])
    with pytest.raises(DataInvalid, match="must have the same turns as chosen, except for the last"):
        read([{"chosen": whole(1, "نعم"), "rejected": whole(2, "لا")}])


def test_answers_of_numbers_in_brackets_are_text() -> None:
    row = {"prompt": "س", "chosen": "[[1, 2], [3, 4]]", "rejected": "[[1, 2], [3, 5]]"}
    assert read([row] * 2)[1] == [row] * 2


def test_the_command_line_takes_one_column_for_a_field() -> None:
    with pytest.raises(Usage, match="names the column of prompt twice"):
        options_of(["prompt=a", "prompt=b"], None, None, None, "refuse")


def test_stars_in_a_published_layout_are_no_labels() -> None:
    """Rows with the other stars cannot be left out: those that stay would have the worst as their good answers."""
    turns = [said("user", "س"), said("assistant", "نعم")]
    for row in ({"messages": turns}, {"completion": turns}, {"instruction": "س", "output": "نعم"}):
        label = "kto_tag" if "output" in row else "label"
        for stars in (4, "4"):
            rows = [{**row, label: 1}] * MANY + [{**row, label: stars}]
            with pytest.raises(DataInvalid, match=f"^line 61: {label}: must be true or false, or 1 or 0, not a score"):
                read(rows, options(on_invalid="skip"))
