"""Every published layout, its mutations, and what happens where a file can be read in several ways."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.layout_samples import (
    CASES,
    GOOD1,
    Q1,
    SAMPLES,
    SYSTEM,
    dialogue,
    means_the_facts,
    option_of,
    options,
    read,
    said,
    told,
    whole,
)
from trainer_core.errors import DataInvalid, DataUnclear
from trainer_core.layouts import PUBLISHED
from trainer_core.layouts.words import BAD, GOOD, as_label, field_of
from trainer_core.row_conversion import convert
from trainer_core.row_rules import Row, text_of
from trainer_core.rows import broken_rows, check_file, check_rows

PAIR = {"prompt": Q1, "chosen": GOOD1, "rejected": "لا."}
LABELLED = {"prompt": Q1, "completion": GOOD1, "label": True}


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_each_layout_is_read(layout: str, name: str) -> None:
    rows = SAMPLES[layout][name]
    report, found = read(rows, option_of(layout))
    assert (report.layout, len(found), report.is_plain) == (layout, len(rows), layout == "own")
    assert set(report.mapping.values()) <= set(rows[0])
    means_the_facts(found)


def test_every_layout_has_samples() -> None:
    assert {layout.name for layout in PUBLISHED} | {"own"} == set(SAMPLES)


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_conversion_gives_our_own_form(layout: str, name: str, tmp_path: Path) -> None:
    """What was converted is plain: reading it again needs no option and changes nothing."""
    rows = SAMPLES[layout][name]
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("\n".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    first: list[tuple[int, Row]] = []
    again: list[tuple[int, Row]] = []
    check_file(source, lambda _, row, line: first.append((line, row)), option_of(layout))
    convert(source, target, option_of(layout))
    report = check_file(target, lambda _, row, line: again.append((line, row)))
    assert report.is_plain
    assert again == first
    assert [line for line, _ in again] == [1, 3]


# -- what carries meaning


def test_a_system_column_becomes_a_turn() -> None:
    for column in ("system", "system_prompt", "تعليمات النظام"):
        report, found = read([{column: SYSTEM, **PAIR}, PAIR])
        assert found[0]["prompt"] == [said("system", SYSTEM), said("user", Q1)]
        assert found[1] is not None
        assert found[1]["prompt"] == Q1
        assert report.mapping["system"] == column
        assert not report.is_plain


def test_a_system_message_is_not_doubled() -> None:
    turns = [said("system", SYSTEM), said("user", Q1)]
    assert read([{**PAIR, "prompt": turns, "system": SYSTEM}])[1][0]["prompt"] == turns
    with pytest.raises(DataInvalid, match="system: differs from the system message in the prompt"):
        read([{**PAIR, "prompt": turns, "system": "كن موجزا."}])


def test_a_history_becomes_turns() -> None:
    row = {"instruction": Q1, "chosen": "أ", "rejected": "ب", "system": SYSTEM, "history": [["مرحبا", "أهلا"]]}
    turns = [said("system", SYSTEM), said("user", "مرحبا"), said("assistant", "أهلا"), said("user", Q1)]
    assert read([row])[1][0]["prompt"] == turns
    assert read([{**PAIR, "history": turns[1:3]}])[1][0]["prompt"] == turns[1:]
    with pytest.raises(DataInvalid, match="history: must be a list"):
        read([{**PAIR, "history": "نص"}])


def test_alpaca_joins_instruction_and_input() -> None:
    row = {"instruction": "ترجم:", "input": "بحر", "chosen": "sea", "rejected": "see"}
    assert read([row])[1][0]["prompt"] == "ترجم:\nبحر"


def test_tools_are_refused_by_name() -> None:
    assert read([{**PAIR, "tools": "[]"}])[0].train_rows == 1
    with pytest.raises(DataInvalid, match="tools: tools are not supported"):
        read([{**PAIR, "tools": [{"name": "search"}]}])


def test_columns_that_are_not_read_are_listed() -> None:
    report, found = read([{**PAIR, "source": "a"}, {**PAIR, "rater": 3}])
    assert (report.unused, report.is_plain) == (["source", "rater"], True)
    assert found[0]["source"] == "a"


# -- forms of values


@pytest.mark.parametrize(
    "answer",
    [
        said("assistant", GOOD1),
        told("gpt", GOOD1),
        [{"role": "assistant", "content": [{"type": "text", "text": GOOD1[:4]}, {"type": "text", "text": GOOD1[4:]}]}],
        [{"role": "Assistant", "content": GOOD1, "name": None}],
        [said("user", Q1), said("assistant", GOOD1)],
    ],
)
def test_forms_of_an_answer(answer: Any) -> None:
    assert read([{**PAIR, "chosen": answer}])[1][0]["chosen"] == [said("assistant", GOOD1)]


def test_parts_that_are_not_text_are_refused_by_name() -> None:
    parts = [{"type": "text", "text": "ما هذا؟"}, {"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(DataInvalid, match='prompt: has a part that is not text: "image_url"'):
        read([{**PAIR, "prompt": [{"role": "user", "content": parts}]}])


def test_roles_of_others() -> None:
    turns = [said("developer", SYSTEM), said("user", Q1), said("assistant", "…"), said("tool", "7"), said("user", Q1)]
    found = read([{**PAIR, "prompt": turns}])[1][0]["prompt"]
    assert [turn["role"] for turn in found] == ["system", "user", "assistant", "tool", "user"]


def test_messages_as_json_text() -> None:
    rows = [{**PAIR, "chosen": json.dumps([said("assistant", GOOD1)])} for _ in range(60)]
    assert read(rows)[1][-1]["chosen"] == [said("assistant", GOOD1)]
    with pytest.raises(DataInvalid, match="line 61: chosen: must contain messages as JSON"):
        read([*rows, PAIR])
    # One of many answers that looks like messages is an answer.
    report, found = read([*[PAIR] * 3, rows[0]])
    assert report.is_plain
    assert found[-1] is rows[0]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        *(
            (label, True)
            for label in (True, 1, 1.0, "1", "true", "True", "yes", "نعم", "👍", "👍🏽", "good", "جيدة", "Thumbs-Up")
        ),
        *(
            (label, False)
            for label in (False, 0, 0.0, "0", "FALSE", "no", "لا", "👎", "سيّئ", "سيء", "undesirable", "غير مقبول")
        ),
    ],
)
def test_labels_that_are_known(label: Any, expected: bool) -> None:
    report, found = read([{**LABELLED, "label": label}])
    assert found[0]["label"] is expected
    assert report.desirable_rows == expected


@pytest.mark.parametrize("label", ["ربما", "2x", [1]])
def test_labels_that_are_not_known_are_refused_with_the_list(label: Any) -> None:
    with pytest.raises(DataInvalid, match=r"label: must be true or false.*نعم/لا") as caught:
        read([LABELLED, {**LABELLED, "label": label}])
    assert caught.value.details[0].code == "label"


def test_no_word_is_good_and_bad() -> None:
    assert not GOOD & BAD


@given(st.text(max_size=20) | st.integers() | st.floats(allow_nan=True) | st.none() | st.lists(st.integers()))
@settings(max_examples=100, deadline=None)
def test_any_value_is_a_label_or_none(value: Any) -> None:
    assert as_label(value) in (True, False, None)


def test_nulls_are_absent() -> None:
    assert read([{**LABELLED, "chosen": None, "rejected": float("nan")}])[1] == [LABELLED]


# -- names


@pytest.mark.parametrize(
    ("column", "field"),
    [
        *((name, "prompt") for name in ("السؤال", "سؤال", "السُّؤال", "Question", "نص السؤال", "التعليمات")),
        *(
            (name, "chosen")
            for name in ("المختار", "الإجابة المختارة", "اجابه مفضله", "الأفضل", "preferred_answer", "betterResponse")
        ),
        *(
            (name, "rejected")
            for name in ("المرفوض", "الاجابة المرفوضة", "الأسوأ", "غير المفضل", "dispreferred", "bad response")
        ),
        *((name, "completion") for name in ("الإجابة", "الاجابه", "جواب", "الرد", "Response", "output")),
        *((name, "label") for name in ("التقييم", "تقييم", "rating", "KTO tag")),
        *((name, None) for name in ("id", "المعرف", "ملاحظات", "chosen_model", "score_chosen", "rejected_rating")),
    ],
)
def test_names_of_columns(column: str, field: str | None) -> None:
    assert field_of(column) == field


def test_columns_are_recognised_by_their_names() -> None:
    report, found = read([{"السؤال": Q1, "الإجابة": GOOD1, "التقييم": "جيد", "ملاحظات": "—"}])
    assert found == [{**LABELLED, "ملاحظات": "—"}]
    assert (report.layout, report.unused) == ("names", ["ملاحظات"])
    assert report.mapping == {"prompt": "السؤال", "completion": "الإجابة", "label": "التقييم"}


@pytest.mark.parametrize(
    "row",
    [
        {"السؤال": Q1, "نص السؤال": Q1, "المختار": "أ", "المرفوض": "ب"},
        {"question": Q1, "answer": "أ", "response": "ب", "rating": 1},
        {"a": Q1, "b": "أ", "c": "ب"},
        {"query": Q1, "better": "أ", "worse": "ب", "answer": "ج", "label": True},
    ],
)
def test_what_is_ambiguous_is_asked(row: Row) -> None:
    with pytest.raises(DataUnclear) as caught:
        read([row, row])
    assert [(each.field, each.code) for each in caught.value.details] == [("map", "map_unclear")]
    question = caught.value.question
    assert question is not None
    assert (question.about, question.choices, len(question.rows)) == ("map", tuple(row), 2)


def test_a_map_overrides_what_is_found() -> None:
    row = {"a": Q1, "b": GOOD1, "c": "ب", "prompt": "شيء آخر", "system": SYSTEM}
    report, found = read([row], options(map={"prompt": "a", "chosen": "b", "rejected": "c"}))
    assert found == [{"prompt": [said("system", SYSTEM), said("user", Q1)], "chosen": GOOD1, "rejected": "ب"}]
    assert (report.layout, report.unused) == ("map", ["prompt"])
    dialogues = {"first": dialogue(Q1, GOOD1), "second": dialogue(Q1, "لا.")}
    _, found = read([dialogues], options(map={"chosen": "first", "rejected": "second"}))
    assert found[0]["chosen"] == [said("assistant", GOOD1)]
    table = {"س": Q1, "أول": GOOD1, "ثان": "لا.", "أيهما": "الأولى"}
    _, found = read([table], options(map={"prompt": "س", "answer_1": "أول", "answer_2": "ثان", "preferred": "أيهما"}))
    assert found == [PAIR]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "سؤال"}, "no column سؤال, or it is empty in every row; the columns are prompt, chosen, rejected"),
        ({"question": "prompt"}, "unknown field question; valid fields are prompt, chosen"),
        ({"preferred": "winner"}, "no column winner"),
    ],
)
def test_a_map_that_names_what_is_not_there(given: dict[str, str], message: str) -> None:
    with pytest.raises(DataInvalid, match=message) as caught:
        read([PAIR], options(map=given))
    assert caught.value.details[0].field == "map"


def test_a_map_that_says_too_little_is_asked_again() -> None:
    with pytest.raises(DataUnclear, match="columns are still needed for chosen, rejected, or completion, label:"):
        read([{"a": Q1, "b": "أ", "c": "ب"}], options(map={"prompt": "a"}))


# -- questions of layouts


def test_two_verdicts_that_differ_are_asked_for() -> None:
    row = {**SAMPLES["pku"]["safe"][0], "safer_response_id": 1}
    with pytest.raises(DataUnclear, match="PKU-SafeRLHF") as caught:
        read([row])
    question = caught.value.question
    assert question is not None
    assert question.choices == ("better_response_id", "safer_response_id")
    for column, chosen in (("better_response_id", GOOD1), ("safer_response_id", row["response_1"])):
        report, found = read([row], options(map={"preferred": column}))
        assert (found[0]["chosen"], report.mapping["preferred"]) == (chosen, column)
        assert report.unused == [name for name in question.choices if name != column]
    # Also where the first rows agree.
    with pytest.raises(DataUnclear):
        read([SAMPLES["pku"]["safe"][0]] * 60 + [row])


def test_scores_need_a_threshold() -> None:
    rows = [{"prompt": Q1, "completion": str(number), "rating": number} for number in range(1, 6)]
    with pytest.raises(
        DataUnclear, match=r"the column rating holds scores, 1 to 5 in the first rows.*, such as 3$"
    ) as caught:
        read(rows)
    question = caught.value.question
    assert question is not None
    assert (question.about, question.choices, question.guess) == ("threshold", ("rating",), 3)
    assert [row["label"] for row in read(rows, options(threshold=4))[1]] == [False, False, False, True, True]


def test_another_score_is_named_with_the_map() -> None:
    _, found = read(SAMPLES["helpsteer"]["scores"], options(threshold=1, map={"label": "correctness"}))
    assert [row["label"] for row in found] == [True, True]


def test_no_preference_is_no_pair() -> None:
    rows = [*SAMPLES["helpsteer_preference"]["second"], {**SAMPLES["helpsteer_preference"]["second"][0]}]
    rows[2]["preference_strength"] = 0
    with pytest.raises(DataInvalid, match="line 3: preference_strength: does not say which answer is better"):
        read(rows)
    assert read(rows, options(on_invalid="skip"))[0].skipped_rows == 1


def test_conversations_must_part_at_the_last_turn() -> None:
    other = [said("user", "سؤال آخر"), said("assistant", "لا.")]
    with pytest.raises(DataInvalid, match="rejected: must have the same turns as chosen, except for the last"):
        read([{"chosen": whole(Q1, GOOD1), "rejected": other}])
    with pytest.raises(DataInvalid, match="prompt: differs from the beginning of chosen"):
        read([{"prompt": "سؤال ثالث", "chosen": whole(Q1, GOOD1), "rejected": whole(Q1, "لا.")}])


def test_a_question_can_be_sent_as_json() -> None:
    deep: Any = "x"
    for _ in range(150):
        deep = [deep]
    row = {"a": "\ud83d" + "س" * 5000, "b": float("inf"), "c": deep, "\ud83d": 1}
    with pytest.raises(DataUnclear) as caught:
        read([row])
    sent = json.dumps(caught.value.as_dict(), ensure_ascii=False, allow_nan=False).encode()
    assert len(sent) < 4000


def test_a_label_beside_a_pair_is_none_of_its() -> None:
    report, found = read([{**PAIR, "label": "x", "system": SYSTEM}])
    assert set(found[0]) == {"prompt", "chosen", "rejected"}
    assert (report.unused, set(report.mapping)) == (["label"], {"prompt", "chosen", "rejected", "system"})


# -- one decision a file


def test_the_layout_holds_for_the_whole_file() -> None:
    orca = SAMPLES["orca"]["orca"][0]
    with pytest.raises(DataInvalid, match="line 71: question: is missing"):
        read([orca] * 70 + [PAIR])


def test_rows_that_lack_something_are_named_together() -> None:
    with pytest.raises(DataInvalid, match=r"^40 rows: rejected is missing \(lines 1, 2, 3, …\)$"):
        read([{"prompt": "x", "chosen": "y"}] * 40)


def test_broken_rows_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(PAIR), "{broken", json.dumps({**PAIR, "chosen": ""}), json.dumps(PAIR)]
    path.write_text("\n".join(lines), encoding="utf-8")
    skip = options(on_invalid="skip")
    report = check_file(path, options=skip)
    assert (report.train_rows, report.skipped_rows, report.is_plain) == (2, 2, False)
    assert [detail.line for detail in report.errors] == [2, 3]
    broken = list(broken_rows(path))
    assert [(line, value) for line, _, value in broken] == [(2, None), (3, {**PAIR, "chosen": ""})]
    assert broken[1][1] == "chosen is empty"
    convert(path, tmp_path / "target", skip)
    assert (tmp_path / "target").read_text(encoding="utf-8").splitlines()[1:3] == ["", ""]
    assert [row["row"] for row in _rows(tmp_path / "target")] == [1, 4]


def _rows(path: Path) -> list[Row]:
    found: list[Row] = []
    check_file(path, lambda _, row, line: found.append({**row, "row": line}))
    return found


def test_a_file_without_a_good_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**PAIR, "chosen": ""}), encoding="utf-8")
    with pytest.raises(DataInvalid, match="no row is valid"):
        check_file(path, options=options(on_invalid="skip"))
    with pytest.raises(DataInvalid):
        convert(path, tmp_path / "target")
    assert [each.name for each in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_file_with_two_parts_is_converted_to_one(tmp_path: Path) -> None:
    orca = SAMPLES["orca"]["orca"]
    source = tmp_path / "rows.json"
    source.write_text(json.dumps({"validation": orca[:1], "train": orca}), encoding="utf-8")
    report = convert(source, tmp_path / "target")
    assert (report.train_rows, report.validation_rows) == (2, 1)
    again = check_file(tmp_path / "target")
    assert (again.train_rows, again.validation_rows, again.is_plain) == (2, 1, True)


def test_rows_in_memory_take_the_same_road() -> None:
    found = check_rows(SAMPLES["orca"]["distilabel"], "kto")
    assert [row["label"] for row in found] == [True, False, True, False]
    assert text_of(found[0]["prompt"]).startswith(SYSTEM)
