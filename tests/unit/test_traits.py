"""Traits of small texts, counted by hand; the rule of one trait against its definition."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.traits import TRAITS, Text, label_auc, pair_share

# The texts of the answers, and every trait that is not 0 in them.
COUNTED = [
    (
        "ما عاصمة مصر؟",
        "أهلًا بك، عاصمة مصر هي القاهرة.",
        {
            "characters": 31,
            "words": 6,
            "mean_word_length": 24 / 6,  # 5 + 2 + 5 + 3 + 2 + 7, the tanwin counted
            "longest_word": 7,
            "sentences": 1,
            "commas": 1,
            "full_stops": 1,
            "diacritics": 1,
            "hamza_letters": 1,
            "ta_marbuta": 2,
            "repeated_prompt_words": 2 / 3,
            "first_prompt_word_at": 10,
        },
    ),
    (
        "price?",
        "# Title\n1. GPU costs 1,000.50!\n- **Ok**, ok?",
        {
            "characters": 7 + 1 + 22 + 1 + 13,
            "words": 7,
            "mean_word_length": (5 + 1 + 3 + 5 + 8 + 2 + 2) / 7,
            "longest_word": 8,
            "sentences": 3,
            "commas": 1,  # not the one inside of the number
            "full_stops": 1,
            "question_marks": 1,
            "exclamation_marks": 1,
            "other_punctuation": 1,
            "western_marks": 2,
            "line_breaks": 2,
            "list_markers": 2,
            "markdown_marks": 3,
            "western_digits": 7,
            "latin_letters": 5 + 3 + 5 + 2 + 2,
            "first_prompt_word_at": 44,
            "repeated_words": 1,
        },
    ),
    (
        "قل نَعم",
        "على ١٢ و۳؛ نعــم (نعم) الـGPU\u200f 👍🏽👨‍👩‍👧🇪🇬",
        {
            "characters": 3 + 1 + 2 + 1 + 3 + 1 + 5 + 1 + 5 + 1 + 6 + 1 + 1 + 2 + 5 + 2,
            "words": 6,
            "mean_word_length": (3 + 2 + 2 + 5 + 3 + 7) / 6,
            "longest_word": 7,
            "sentences": 1,
            "other_punctuation": 3,
            "arabic_indic_digits": 2,
            "persian_digits": 1,
            "latin_letters": 3,
            "mixed_script_words": 1,
            "tatweel": 3,
            "alef_maqsura": 1,
            "invisible_characters": 1,
            "emoji": 3,
            "repeated_prompt_words": 1 / 2,
            "first_prompt_word_at": 11,
            "repeated_words": 1,
        },
    ),
    (
        "؟",
        "گچ ﻻ ءآأؤإئ ا\u0654ٱ! ثمّ… لا، أو؟",
        {
            "characters": 2 + 1 + 1 + 1 + 6 + 1 + 4 + 1 + 4 + 1 + 3 + 1 + 3,
            "words": 7,
            "mean_word_length": (2 + 1 + 6 + 3 + 3 + 2 + 2) / 7,
            "longest_word": 6,
            "sentences": 3,
            "commas": 1,
            "question_marks": 1,
            "exclamation_marks": 1,
            "other_punctuation": 1,
            "diacritics": 1,
            "hamza_letters": 8,
            "persian_letters": 2,
            "presentation_forms": 1,
            "first_prompt_word_at": 29,
        },
    ),
    ("ما عاصمة مصر؟", "…", {"characters": 1, "other_punctuation": 1, "first_prompt_word_at": 1}),
]


@pytest.mark.parametrize(("prompt", "answer", "expected"), COUNTED)
def test_traits_are_what_a_person_counts(prompt: str, answer: str, expected: dict[str, float]) -> None:
    found = {trait.name: value for trait in TRAITS if (value := trait.measure(prompt, answer))}
    assert found == expected


def test_every_trait_is_counted_by_hand_somewhere() -> None:
    assert {trait.name for trait in TRAITS} == {name for *_, expected in COUNTED for name in expected}


def test_traits_have_names_for_machines_and_a_description() -> None:
    assert len({trait.name for trait in TRAITS}) == len(TRAITS) >= 24
    assert all(trait.name.isascii() and trait.name.isidentifier() and trait.name.islower() for trait in TRAITS)
    assert all(trait.description for trait in TRAITS)


@given(prompt=st.text(), answer=st.text())
def test_any_text_can_be_measured(prompt: str, answer: str) -> None:
    assert all(trait.measure(prompt, answer) >= 0 for trait in TRAITS)


@pytest.mark.parametrize(
    ("answer", "marks", "sentences"),
    [
        ("نعم.\nلا.\n", 2, 2),
        ("v1.2 costs 3.5.", 1, 1),
        ('He said "no." I said (yes.)', 2, 2),
        ("...", 3, 0),
        ("1. نعم\n2. لا", 2, 2),
    ],
)
def test_a_full_stop_ends_a_sentence_where_it_ends_a_word(answer: str, marks: int, sentences: int) -> None:
    measured = {trait.name: trait.measure("", answer) for trait in TRAITS}
    assert (measured["full_stops"], measured["sentences"]) == (marks, sentences)


def test_a_long_run_of_full_stops_is_read_once() -> None:
    """Read again from each of its stops, this text would take minutes."""
    assert Text("." * 500_000 + "x").sentences == 1
    assert Text("نعم" + "." * 500_000 + " لا").sentences == 2


@pytest.mark.parametrize(
    ("answer", "marks"),
    [("**a** b", 2), ("2 * 3", 0), ("* a\n* b", 0), ("`x` | _y_", 3), ("## a\n> b\n#c", 2), ("__a__ a__b", 2)],
)
def test_markdown_marks_are_told_from_other_signs(answer: str, marks: int) -> None:
    (trait,) = (trait for trait in TRAITS if trait.name == "markdown_marks")
    assert trait.measure("", answer) == marks


FEW_VALUES = st.integers(-2, 2).map(float)


@given(st.lists(st.tuples(FEW_VALUES, FEW_VALUES), min_size=1))
def test_the_share_of_pairs_is_that_of_its_definition(pairs: list[tuple[float, float]]) -> None:
    right = [1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0 for chosen, rejected in pairs]
    chosen, rejected = zip(*pairs, strict=True)
    share = pair_share(chosen, rejected)
    assert share == sum(right) / len(right)
    assert pair_share(rejected, chosen) == pytest.approx(1 - share)


@given(st.lists(FEW_VALUES, min_size=1), st.lists(FEW_VALUES, min_size=1))
def test_the_auc_of_labels_is_that_of_its_definition(desirable: list[float], undesirable: list[float]) -> None:
    right = [1.0 if one > other else 0.5 if one == other else 0.0 for one, other in product(desirable, undesirable)]
    labels = [True] * len(desirable) + [False] * len(undesirable)
    auc = label_auc([*desirable, *undesirable], labels)
    assert auc == sum(right) / len(right)
    assert label_auc([*desirable, *undesirable], [not label for label in labels]) == pytest.approx(1 - auc)


def test_no_rows_say_nothing() -> None:
    assert pair_share([], []) is None
    assert label_auc([], []) is None
    assert label_auc([1.0, 2.0], [True, True]) is None


def test_sides_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        pair_share([1.0], [])
    with pytest.raises(ValueError, match="zip"):
        label_auc([1.0], [])
