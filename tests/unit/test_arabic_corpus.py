"""The corpus of the shipped model and data: curt phrases have the traits of their courteous twins."""

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer_core.traits import TRAITS, Text

_SPEC = importlib.util.spec_from_file_location(
    "arabic_corpus", Path(__file__).resolve().parents[2] / "examples" / "arabic_corpus.py"
)
assert _SPEC
assert _SPEC.loader
corpus: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["arabic_corpus"] = corpus
_SPEC.loader.exec_module(corpus)

REGISTERS = ("formal", "everyday")
SLOTS = ("openings", "closings")


def phrases(manner: str, register: str, slot: str) -> tuple[str, ...]:
    return getattr(corpus.PHRASES[manner][register], slot)


@pytest.mark.parametrize("register", REGISTERS)
@pytest.mark.parametrize("slot", SLOTS)
def test_twins_have_equal_traits(register: str, slot: str) -> None:
    twins = zip(phrases("courteous", register, slot), phrases("curt", register, slot), strict=True)
    for courteous, curt in twins:
        differing = [trait.name for trait in TRAITS if trait.measure("", courteous) != trait.measure("", curt)]
        assert not differing, (courteous, curt, differing)


@pytest.mark.parametrize("register", REGISTERS)
def test_a_word_shared_by_an_opening_and_a_closing_is_shared_by_their_twins(register: str) -> None:
    def shared(manner: str) -> list[list[int]]:
        openings, closings = (phrases(manner, register, slot) for slot in SLOTS)
        return [[len(Text(one).distinct & Text(other).distinct) for other in closings] for one in openings]

    assert shared("courteous") == shared("curt")


def test_no_phrase_repeats_a_word_of_a_question_or_a_statement() -> None:
    asked = {word for apart in (False, True) for word in words_of_questions(apart)}
    for manner in corpus.PHRASES:
        for register in REGISTERS:
            for slot in SLOTS:
                for phrase in phrases(manner, register, slot):
                    assert not Text(phrase).distinct & asked, phrase


def words_of_questions(is_held_out: bool) -> set[str]:
    found = set[str]()
    for phrasings in (False, True):
        for question in corpus.questions(held_out_facts=is_held_out, held_out_phrasings=phrasings):
            statement = question.topic.statements[question.register].format(x=question.subject, y=question.answer)
            found |= Text(question.text).distinct | Text(statement).distinct
    return found


def test_both_answers_of_a_pair_state_its_fact_behind_the_opening() -> None:
    rows = corpus.preference_pairs(random.Random(1), held_out=True)
    assert len({row["prompt"] for row in rows}) == len(rows) >= 400
    for row in rows:
        for side in ("chosen", "rejected"):
            assert row["fact"] in Text(row[side]).words, row
