"""Counter-sets: the trait is exchanged or equal afterwards, and what the rule promises to keep is kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.counter_sets import Pair, counter_set, exchange_marks, kind_of, without
from trainer_core.traits import COMMA, FULL_STOP, TRAITS, WORD, Trait

BY_NAME = {trait.name: trait for trait in TRAITS}
EXCHANGED = [trait for trait in TRAITS if kind_of(trait) == "exchanged"]
MADE_EQUAL = [trait for trait in TRAITS if kind_of(trait) == "made_equal"]
OPPOSITE = [trait for trait in TRAITS if kind_of(trait) == "opposite_rows"]

PIECES = st.sampled_from(
    [
        *["أهلًا", "عمّان", "على", "مدرسة", "ئـــي", "گچ", "ﻻ", "نَعم", "السلام\u200fعليكم", "GPU", "الـGPU", "ok"],
        *["5", "٣", "۷", "1,000.50", "3:30", "٣٫٥"],
        *[" ", " ", " ", "\n", "،", ",", ".", "!", "؟", "?", "؛", ";", "%", ":", "(", ")", "-", "…", "«", "»", "'"],
        *["\n- ", "\n2. ", "# ", "**", "`", "> ", "|", "__", " 👍🏽", "👨‍👩‍👧", "🇪🇬", "\u200d", "\u200b", "\r\n", "\t", "۔"],
    ]
)
TEXTS = st.lists(PIECES, max_size=24).map("".join)
"""Texts of everything that the traits count."""


def measured(trait: Trait, pair: Pair) -> tuple[float, float]:
    return trait.measure(pair.prompt, pair.chosen), trait.measure(pair.prompt, pair.rejected)


def letters(text: str) -> str:
    """Letters and digits in their order, without the tatweel."""
    return "".join(char for char in text if char.isalnum() and char != "\u0640")


def test_each_trait_has_the_kind_that_its_rule_allows() -> None:
    assert [trait.name for trait in EXCHANGED] == ["commas", "full_stops", "question_marks", "exclamation_marks"]
    assert [trait.name for trait in OPPOSITE] == [
        *("characters", "words", "mean_word_length", "longest_word", "sentences", "latin_letters"),
        *("repeated_prompt_words", "first_prompt_word_at", "repeated_words"),
    ]


@given(TEXTS, TEXTS)
def test_an_exchange_of_marks_exchanges_them_and_keeps_every_word(chosen: str, rejected: str) -> None:
    for trait, pattern in zip(EXCHANGED, (COMMA, FULL_STOP), strict=False):
        exchanged = exchange_marks(pattern, chosen, rejected)
        if exchanged is None:
            continue
        before, after = Pair("", chosen, rejected), Pair("", *exchanged)
        assert measured(trait, after) == measured(trait, before)[::-1]
        for old, new in zip(before, after, strict=True):
            assert WORD.findall(new) == WORD.findall(old)


@given(TEXTS, TEXTS)
def test_an_exchange_fails_only_where_the_other_side_has_too_few_words(chosen: str, rejected: str) -> None:
    longer = " كلمة" * 24
    for mark, trait in zip(("،", ".", "؟", "!"), EXCHANGED, strict=True):
        found = counter_set(trait, [Pair("", chosen + mark, rejected + longer)], chosen_has_more=True)
        before = measured(trait, Pair("", chosen + mark, rejected + longer))
        assert found.left_out == 0 or before[0] < before[1]
        assert len(found.rows) + found.left_out == (before[0] != before[1])


@given(TEXTS)
def test_an_answer_made_equal_has_none_of_the_trait(answer: str) -> None:
    for trait in MADE_EQUAL:
        assert trait.measure("", without(trait, answer)) == 0, trait.name


@given(st.text())
def test_so_has_any_text(answer: str) -> None:
    for trait in MADE_EQUAL:
        assert trait.measure("", without(trait, answer)) == 0, trait.name


@given(TEXTS)
def test_what_has_none_of_a_trait_is_not_touched(answer: str) -> None:
    for trait in MADE_EQUAL:
        if not trait.measure("", answer):
            assert without(trait, answer) == answer, trait.name


@given(TEXTS)
def test_punctuation_breaks_emoji_and_marks_go_without_a_letter_changing(answer: str) -> None:
    for name in (
        "other_punctuation",
        "western_marks",
        "line_breaks",
        "diacritics",
        "tatweel",
        "emoji",
        "mixed_script_words",
    ):
        assert letters(without(BY_NAME[name], answer)) == letters(answer), name
    for name in ("markdown_marks", "invisible_characters"):
        assert letters(without(BY_NAME[name], answer)).replace("_", "") == letters(answer), name


@given(TEXTS)
def test_words_stay_apart_and_whole_when_punctuation_goes(answer: str) -> None:
    for name in ("other_punctuation", "western_marks", "line_breaks"):
        assert WORD.findall(without(BY_NAME[name], answer)) == WORD.findall(answer), name


@given(TEXTS)
def test_spelling_changes_letter_for_letter(answer: str) -> None:
    for name in ("ta_marbuta", "alef_maqsura", "persian_letters", "western_digits", "arabic_indic_digits", "persian_digits"):
        assert len(without(BY_NAME[name], answer)) == len(answer), name


CHANGED = [
    (
        "commas",
        "أهلًا بك، هي القاهرة، دمت بخير.",
        "القاهرة، يعرفه الجميع.",
        "أهلًا بك هي القاهرة، دمت بخير.",
        "القاهرة، يعرفه، الجميع.",
    ),
    ("commas", "نعم", "لا، شكرًا، أبدًا", "نعم،", None),
    ("full_stops", "نعم. هي القاهرة.", "هي القاهرة في مصر", "نعم هي القاهرة", "هي. القاهرة في مصر."),
    ("exclamation_marks", "هي القاهرة!", "هي القاهرة في مصر", "هي القاهرة", "هي القاهرة في مصر!"),
    ("question_marks", "أهي القاهرة؟ نعم.", "هي القاهرة لا غير.", "أهي القاهرة نعم.", "هي القاهرة لا؟ غير."),
    ("other_punctuation", "قال: «3:30» - نعم!", "قال 5", "قال 3:30 نعم!", "قال 5"),
    ("western_marks", "1,000, ok?", "لا؟", "1,000، ok؟", "لا؟"),
    ("line_breaks", "نعم\n\nلا\n", "نعم", "نعم لا", "نعم"),
    ("list_markers", "- نعم\n2. لا", "نعم", "نعم\nلا", "نعم"),
    ("markdown_marks", "# **نعم**", "نعم", "نعم", "نعم"),
    ("western_digits", "ناتجه 13", "13 واضح 8", "ناتجه ١٣", "١٣ واضح ٨"),
    ("arabic_indic_digits", "ناتجه ١٣", "٣", "ناتجه 13", "3"),
    ("persian_digits", "۱۳", "نعم", "١٣", "نعم"),
    ("mixed_script_words", "والـGPU3", "نعم", "والـ GPU3", "نعم"),
    ("diacritics", "شكرًا جدًّا", "نعم", "شكرا جدا", "نعم"),
    ("tatweel", "نعـــم", "لا", "نعم", "لا"),
    ("hamza_letters", "أُؤمن بإله الآباء المئة", "لا", "اُومن باله الابا المية", "لا"),
    ("ta_marbuta", "مدرسة", "لا", "مدرسه", "لا"),
    ("alef_maqsura", "على", "لا", "علي", "لا"),
    ("persian_letters", "کتابی", "لا", "كتابي", "لا"),
    ("presentation_forms", "ﻻ", "لا", "لا", "لا"),
    ("invisible_characters", "نعم\u200f 👨‍👩‍👧", "لا", "نعم 👨‍👩‍👧", "لا"),
    ("emoji", "👍🏽 نعم 👨‍👩‍👧!", "لا", "نعم!", "لا"),
]


@pytest.mark.parametrize(("name", "chosen", "rejected", "new_chosen", "new_rejected"), CHANGED)
def test_rules_by_example(name: str, chosen: str, rejected: str, new_chosen: str, new_rejected: str | None) -> None:
    found = counter_set(BY_NAME[name], [Pair("س", chosen, rejected)], chosen_has_more=True)
    if new_rejected is None:
        assert (found.pairs, found.left_out) == ((), 1)
        return
    assert found.pairs == (Pair("س", new_chosen, new_rejected),)
    assert (found.rows, found.left_out) == ((0,), 0)


def test_every_rule_has_an_example() -> None:
    assert {name for name, *_ in CHANGED} == {trait.name for trait in [*EXCHANGED, *MADE_EQUAL]}


def test_without_a_rule_the_rows_that_point_the_other_way_are_taken() -> None:
    pairs = [Pair("س", "كلمة", "كلمة أخرى"), Pair("س", "كلمة أخرى", "كلمة"), Pair("س", "كلمة", "أخرى")]
    found = counter_set(BY_NAME["words"], pairs, chosen_has_more=True)
    assert (found.kind, found.rows, found.pairs) == ("opposite_rows", (0,), (pairs[0],))
    assert counter_set(BY_NAME["words"], pairs, chosen_has_more=False).rows == (1,)


def test_pairs_that_a_trait_does_not_tell_apart_are_in_no_counter_set() -> None:
    pairs = [Pair("س", "نعم، لا.", "لا، نعم."), Pair("س", "نعم، لا", "نعم لا")]
    assert counter_set(BY_NAME["commas"], pairs, chosen_has_more=True).rows == (1,)


def test_an_answer_that_would_be_left_without_a_word_is_left_out() -> None:
    found = counter_set(BY_NAME["emoji"], [Pair("س", "👍🏽", "لا")], chosen_has_more=True)
    assert (found.rows, found.left_out) == ((), 1)
