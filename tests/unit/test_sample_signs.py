"""Language, scripts and repetition of answers; every expected value is counted by hand."""

from typing import Any

import pytest

from trainer_core.guards import signs
from trainer_core.sample_signs import HAN, LATIN, Said, in_language, leak, sign_metrics, word_repetition

ARABIC = "ما عاصمة مصر وأين تقع؟"


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        (ARABIC, "عاصمة مصر هي القاهرة.", True),
        (ARABIC, "القاهرة", True),
        (ARABIC, "Cairo", False),
        (ARABIC, "开罗是埃及的首都", False),
        (ARABIC, "القاهرة Cairo", True),  # most letters decide
        (ARABIC, "42", None),
        ("2 + 2 = ؟", "أربعة", None),
        # One script, several languages.
        (ARABIC, "پایتخت مصر قاهره است و در شمال کشور قرار دارد", False),
        (ARABIC, "مصر کا دارالحکومت قاہرہ ہے", False),
        (ARABIC, "عاصمة مصر هي القاهرة وتقع في شمال البلاد، وفيها گراند مول كبير", True),
        ("پایتخت مصر کجاست و چه ویژگی‌هایی دارد؟", "عاصمة مصر هي القاهرة وتقع في شمال البلاد", False),
        ("پایتخت مصر کجاست و چه ویژگی‌هایی دارد؟", "پایتخت مصر قاهره است و در شمال کشور قرار دارد", True),
        ("What is the capital of Egypt?", "The capital of Egypt is Cairo.", True),
        ("What is the capital of Egypt?", "La capitale de l'Égypte est Le Caire.", False),
        ("What is the capital of Egypt?", "Le Caire", True),  # too short to tell
        ("北京在哪里？", "北京在中国。", True),
    ],
)
def test_an_answer_is_in_the_language_of_its_prompt(prompt: str, answer: str, expected: bool | None) -> None:
    assert in_language(Said.to(prompt, answer)) is expected


def test_the_last_turn_of_the_user_decides_and_all_turns_lend_their_scripts() -> None:
    turns = [
        {"role": "system", "content": "You are a helpful assistant who answers briefly and politely."},
        {"role": "user", "content": ARABIC},
    ]
    assert in_language(Said.to(turns, "القاهرة")) is True
    assert in_language(Said.to(turns, "The capital is Cairo")) is False
    assert leak(Said.to(turns, "The capital is Cairo")) == 0, "the system prompt is in Latin letters"
    assert leak(Said.to(turns, "首都")) == 1


def test_letters_of_other_scripts_leak() -> None:
    mixed = Said.to(ARABIC, "قاهرة abc 是")  # 5 Arabic, 3 Latin, 1 Han
    assert leak(mixed) == pytest.approx(4 / 9)
    assert leak(mixed, LATIN) == pytest.approx(3 / 9)
    assert leak(mixed, HAN) == pytest.approx(1 / 9)
    assert leak(Said.to("اشرح API", "هي abc 是")) == pytest.approx(1 / 6), "the prompt uses Latin letters itself"
    assert leak(Said.to(ARABIC, "123")) == 0


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("نعم", 0.0),
        ("نعم نعم نعم نعم", 2 / 3),
        ("هذا جيد وهذا جيد", 0.0),
        ("هذا جيد. هَذا جيّد! هذا جيد", 3 / 5),  # the same words with other marks
    ],
)
def test_repetition_by_word(text: str, share: float) -> None:
    assert word_repetition(text) == pytest.approx(share)


def test_metrics_are_means_over_the_samples_that_can_tell() -> None:
    found = sign_metrics([Said.to(ARABIC, "القاهرة"), Said.to(ARABIC, "Cairo"), Said.to(ARABIC, "7")])
    assert found == {
        "sample_in_language": 0.5,
        "sample_script_leak": pytest.approx(1 / 3),
        "sample_han_leak": 0.0,
        "sample_latin_leak": pytest.approx(1 / 3),
        "sample_word_repetition": 0.0,
    }
    assert sign_metrics([Said.to(ARABIC, "7")])["sample_in_language"] is None


def history(name: str, *values: float) -> list[dict[str, Any]]:
    return [{"step": step, f"eval_{name}": value} for step, value in enumerate(values)]


@pytest.mark.parametrize(
    ("name", "code", "values", "warns"),
    [
        ("sample_in_language", "language_drift", (1.0, 0.5), True),
        ("sample_in_language", "language_drift", (1.0, 0.75), False),  # one of four
        ("sample_in_language", "language_drift", (0.5, 0.5), False),  # the base is like that
        ("sample_in_language", "language_drift", (1.0, 0.0, 1.0), False),  # the last one counts
        ("sample_in_language", "language_drift", (0.0,), False),
        ("sample_script_leak", "script_leak", (0.0, 0.11), True),
        ("sample_script_leak", "script_leak", (0.05, 0.1), False),
        ("sample_script_leak", "script_leak", (0.4, 0.45), False),
        ("sample_script_leak", "script_leak", (0.4, 0.0), False),
    ],
)
def test_a_change_since_the_first_evaluation_warns(name: str, code: str, values: tuple[float, ...], warns: bool) -> None:
    assert [sign.code for sign in signs(history(name, *values))] == ([code] if warns else [])


def test_the_warnings_name_step_and_shares() -> None:
    (drift,) = signs(history("sample_in_language", 1.0, 0.5))
    assert drift.message.startswith("at step 1, 50% of the sample answers are in their prompt's language, down from 100%")
    (leaked,) = signs(history("sample_script_leak", 0.02, 0.3))
    assert leaked.message.startswith("at step 1, 30% of the letters")
