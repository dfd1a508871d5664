"""The dashboard's catalogues and files: every word in both languages, every key used, nothing fetched from elsewhere."""

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

import pytest

from jobs.artifacts import ArtifactKind
from jobs.states import Cause, JobState, Phase, Request
from tests.wording import LATIN
from trainer_core.config.units import UnitName
from trainer_core.effect import RowsFrom, Verdict
from trainer_core.row_signal import DROPPED, NOTED
from trainer_core.wording import catalogue

STATIC = Path(__file__).resolve().parents[2] / "api" / "dashboard" / "static"
OWN = [
    path
    for path in sorted(STATIC.rglob("*"))
    if path.suffix in (".js", ".css", ".html", ".svg") and "vendor" not in path.parts
]
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in OWN if path.suffix == ".js")
WORDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (STATIC / "locales").glob("*.json")
}
# Plural forms that a language has (CLDR).
PLURALS = {"en": {"one", "other"}, "ar": {"zero", "one", "two", "few", "many", "other"}}
FAMILIES: dict[str, type[StrEnum]] = {
    "state": JobState,
    "phase": Phase,
    "requested": Request,
    "artifact": ArtifactKind,
}


def forms(text: str | dict[str, str]) -> list[str]:
    return [text] if isinstance(text, str) else list(text.values())


def test_both_languages_have_the_same_words() -> None:
    assert set(WORDS) == {"en", "ar"}
    # The English help of a field is its description in the job spec.
    assert set(WORDS["en"]) == {key for key in WORDS["ar"] if not key.startswith("help.")}


@pytest.mark.parametrize("language", ["en", "ar"])
def test_a_catalogue_is_in_its_language(language: str) -> None:
    foreign = re.compile(r"[\u0600-\u06ff]" if language == "en" else r"[A-Za-z]")
    for key, text in WORDS[language].items():
        for form in forms(text):
            assert form.strip(), key
            # Help names fields and values as a spec has them.
            plain = re.sub(r"`[^`]+`", "", form) if key.startswith("help.") else form
            plain = re.sub(r"\{\w+\}", "", plain)
            assert not foreign.search(LATIN.sub("", plain) if language == "ar" else plain), key
        if isinstance(text, dict):
            assert set(text) == PLURALS[language], key


def test_translations_take_the_same_values() -> None:
    for key, text in WORDS["en"].items():
        names = {name for form in forms(text) for name in re.findall(r"\{(\w+)\}", form)}
        translated = {name for form in forms(WORDS["ar"][key]) for name in re.findall(r"\{(\w+)\}", form)}
        assert translated == names, key


def test_every_word_that_is_asked_for_is_there_and_the_other_way_round() -> None:
    asked = set(re.findall(r"""\bt\(\s*"([\w.]+)\"""", SOURCE)) | set(
        re.findall(r"""[?:]\s*"([a-z_]+\.[a-z_]+)\"""", SOURCE)
    )
    asked |= set(re.findall(r"""\bcode="([\w.]+)\"""", SOURCE))
    assert asked - set(WORDS["en"]) - set(catalogue("en")) == set()
    # Keys that are put together, by their beginning.
    made = set(re.findall(r"\b(?:t|has)\(\s*`(\w+)\.\$\{", SOURCE))
    # The service sends these with what they are about: `GET /v1/methods`.
    made |= {"field", "method"}
    unused = {key for key in WORDS["en"] if key not in asked and key.split(".")[0] not in made}
    assert unused == set()


def test_whatever_the_service_says_by_name_has_words() -> None:
    for family, names in FAMILIES.items():
        assert {f"{family}.{name.value}" for name in names} <= set(WORDS["en"]), family
    ends = set(Cause) - {Cause.CLAIM, Cause.RESUME}
    assert {f"outcome.{cause.value}" for cause in ends} <= set(WORDS["en"])
    effects = {f"{family}.{verdict}" for family in ("verdict", "effect_text", "forecast") for verdict in get_args(Verdict)}
    assert {f"unit.{name}" for name in get_args(UnitName)} <= set(WORDS["en"])
    assert effects | {f"measured.{name}" for name in get_args(RowsFrom)} <= set(WORDS["en"])


def test_no_sentence_of_the_service_is_repeated() -> None:
    """The page has both in one catalogue."""
    for language, words in WORDS.items():
        assert set(words) & set(catalogue(language)) == set()


def test_whatever_is_found_in_rows_has_words() -> None:
    assert {f"found.{code}" for code in (*DROPPED, *NOTED)} <= set(WORDS["en"])


def test_nothing_comes_from_elsewhere_and_no_markup_is_made_of_text() -> None:
    for path in OWN:
        text = path.read_text(encoding="utf-8")
        addresses = [each for each in re.findall(r"https?://[^\s\"'`)]+", text) if "www.w3.org" not in each]
        assert addresses == [], path.name
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "dangerouslySetInnerHTML"):
        assert word not in SOURCE
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    faces = re.findall(r"url\(\"?([^)\"]+)", (STATIC / "app.css").read_text(encoding="utf-8"))
    assert faces
    assert all((STATIC / face).is_file() for face in faces)
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page)


def test_numbers_and_dates_are_formatted_in_one_module() -> None:
    """What formats elsewhere follows the browser's language, which may not be the page's."""
    formatting = re.compile(r"\bIntl\b|\btoLocale\w*|\btoFixed\b|\btoPrecision\b|\btoExponential\b|\bnew Date\b")
    found = {path.name for path in OWN if path.suffix == ".js" and formatting.search(path.read_text(encoding="utf-8"))}
    assert found == {"language.js"}


def test_files_of_the_interface_are_short() -> None:
    for path in OWN:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path.name
