"""The findings of a report in words, the most serious first: what a person should read if nothing else."""

from collections.abc import Iterator
from typing import Any

from trainer_core.data_report.spelling import VARIANTS
from trainer_core.wording import Message, said, say

_BROKEN = ("mojibake", "reversed", "presentation_forms", "bidi_controls", "zero_width", "persian_letters", "not_nfc")
"""Signs that are hardly ever meant in Arabic text."""
_BOTH_DIGITS = 0.05
_LANGUAGE = 0.05
_NEAR = 0.05
_COSTLY = 1.15
_FEWEST_TEXTS = 20
_FEWEST_WORDS = 5


def findings(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Sentences about a report: `code`, and the sentence in the form of `trainer_core.wording.said`."""
    found = [*_shortcuts(report), *_contents(report), *_signs(report), *_spellings(report), *_tokens(report)]
    return [{"code": code, **sentence} for code, sentence in found]


def _shortcuts(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for each in report["shortcuts"]["named"]:
        yield "shortcut", {name: each[name] for name in ("message", "message_code", "params")}


def _contents(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    repeats, sampled = report["duplicates"], report["sampled_rows"]
    if count := repeats["contradictions"]["rows"]:
        yield "contradictions", said(say("finding.contradictions", count=_rows(count)))
    if count := repeats["exact"]["rows"]:
        yield "duplicates", said(say("finding.duplicates", count=_rows(count)))
    if (count := repeats["near"]["rows"]) > _NEAR * sampled:
        yield "near_duplicates", said(say("finding.near_duplicates", count=_rows(count), sampled=_rows(sampled)))
    other = report["languages"]["answers_in_another_language"]
    answers = report["languages"]["answers"]
    if other > _LANGUAGE * answers:
        yield "another_language", said(say("finding.another_language", count=_answers(other), sampled=_answers(answers)))


def _signs(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    sides = [side for name, side in report["sides"].items() if name != "prompt"]
    answers = sum(side["texts"] for side in sides)

    def texts_with(sign: str) -> int:
        return sum(side["signs"].get(sign, {"texts": 0})["texts"] for side in sides)

    for sign in (*_BROKEN, "arabizi"):
        if count := texts_with(sign):
            yield sign, said(say(f"finding.{sign}", count=_answers(count)))
    western, arabic = texts_with("western_digits"), texts_with("arabic_indic_digits")
    if min(western, arabic) > _BOTH_DIGITS * answers:
        yield "two_digits", said(say("finding.two_digits", western=_answers(western), arabic=_answers(arabic)))


def _spellings(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    spellings = report["spellings"]
    for variant in VARIANTS:
        count, examples = sum(spellings["unusual"][variant].values()), spellings["examples"][variant]
        if count >= _FEWEST_WORDS and examples:
            words = {"word": examples[0]["word"], "usual": examples[0]["usual"]}
            count_said = say("count.words", n=count)
            yield f"spelling_{variant}", said(say(f"finding.spelling_{variant}", count=count_said, **words))


def _tokens(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    tokens = report["tokens"]
    if not tokens:
        return
    for name, each in tokens["varieties"].items():
        times = each["next_to_msa"]
        if times and times > _COSTLY and name != "unstated" and each["texts"] >= _FEWEST_TEXTS:
            values = {"variety": say(f"variety.{name}"), "times": round(times, 2), "model": tokens["model"]}
            yield "variety_costs", said(say("finding.variety_costs", **values))
    if over := tokens["rows_over_either_limit"]:
        limits = {"prompt_limit": tokens["max_prompt_length"], "limit": tokens["max_length"]}
        sampled = _rows(report["sampled_rows"])
        yield "over_limit", said(say("finding.over_limit", count=_rows(over), sampled=sampled, **limits))


def _rows(count: int) -> Message:
    return say("count.rows", n=count)


def _answers(count: int) -> Message:
    return say("count.answers", n=count)
