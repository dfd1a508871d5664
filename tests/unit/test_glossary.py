"""One word for a thing: the glossary, the catalogues and the pages agree, and nothing is written as if translated."""

import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.wording import ARABIC_FAULTS, ARABIC_OF, ENGLISH_FAULTS, NOT_THE_WORD

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "glossary.md"
# English and Arabic terms, with their sentences.
TERMS = re.findall(
    r"^\| (?!English|---)(.+?) \| (.+?) \| (.+?) \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
)
CATALOGUES = sorted(path for path in ROOT.glob("*/**/ar.json") if ".venv" not in path.parts)
ARABIC_PAGES = sorted([*ROOT.glob("*.ar.md"), *(ROOT / "docs").rglob("*.ar.md")])
# Packages whose comments, docstrings and texts are held to plain English.
PLAIN = ("api", "jobs", "tafdil", "trainer_core", "worker")
# Names in backticks and the fields of f-strings.
CODE = re.compile(r"`[^`]*`|\{[^{}]*\}")


def forms(text: str | dict[str, str]) -> list[str]:
    return [text] if isinstance(text, str) else list(text.values())


def bare(text: str) -> str:
    """Arabic without vowel signs, which people write or leave out."""
    return re.sub(r"[\u064b-\u0652\u0640]", "", text)


def words_of(catalogue: Path) -> dict[str, Any]:
    return json.loads(catalogue.read_text(encoding="utf-8"))


def pages() -> list[Path]:
    """What people read, but for decisions, which keep the words of their day."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    return sorted(path for path in found if "decisions" not in path.parts)


def sentences(source: str) -> Iterator[tuple[int, str]]:
    """Comments and strings of a Python file without the code in them, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (
            tokenize.COMMENT,
            tokenize.STRING,
            getattr(tokenize, "FSTRING_MIDDLE", -1),
        ) and not re.fullmatch(r'"\w+"', token.string):  # a name or a key
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, CODE.sub("", line)


def faults(found: Iterator[tuple[int, str]], place: str) -> list[str]:
    return [
        f"{place}:{line}: {text.strip()[:120]}  ({instead})"
        for line, text in found
        for fault, instead in ENGLISH_FAULTS.items()
        if re.search(fault, text)
    ]


def test_each_term_stands_once_with_a_sentence_in_both_languages() -> None:
    assert len(TERMS) >= 40
    english = [term for term, *_ in TERMS]
    assert len(set(english)) == len(english)
    for term, arabic, meaning, explained in TERMS:
        assert meaning.endswith("."), term
        assert explained.endswith("."), term
        assert re.search(r"[\u0621-\u064a]", explained), term
        assert re.search(r"[\u0621-\u064a]", arabic) or arabic == term, term


def test_the_terms_are_the_words_of_the_catalogues_and_pages() -> None:
    english = "\n".join(path.read_text(encoding="utf-8") for path in pages() if path != PAGE).lower()
    sentences = (ROOT / "trainer_core" / "wording").glob("*.json")
    arabic = bare("\n".join(path.read_text(encoding="utf-8") for path in (*CATALOGUES, *sentences, *ARABIC_PAGES)))
    for term, translated, *_ in TERMS:
        assert re.search(rf"\b{term.lower()}", english.replace("-", " ")), term
        assert all(word.removeprefix("ال") in arabic for word in bare(translated).split()), translated


@pytest.mark.parametrize("catalogue", CATALOGUES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_word_is_always_translated_by_the_same_word(catalogue: Path) -> None:
    arabic, english = words_of(catalogue), words_of(catalogue.with_name("en.json"))
    wrong = []
    for key, text in english.items():
        said = re.sub(NOT_THE_WORD, "", " ".join(forms(text)), flags=re.IGNORECASE)
        translated = bare(" ".join(forms(arabic[key])))
        wrong += [
            f"{key}: {word}: {translated}"
            for word, stems in ARABIC_OF.items()
            if re.search(rf"\b(?:{word})\b", said, re.IGNORECASE) and not any(bare(stem) in translated for stem in stems)
        ]
    assert wrong == []


@pytest.mark.parametrize("fault", ARABIC_FAULTS)
def test_arabic_reads_as_written_by_a_native(fault: str) -> None:
    found = [
        f"{path.name}: {key}: {form}"
        for path in CATALOGUES
        for key, text in words_of(path).items()
        for form in forms(text)
        if re.search(fault, bare(form))
    ]
    found += [
        f"{path.name}:{line}: {text}"
        for path in ARABIC_PAGES
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(fault, bare(text))
    ]
    assert found == [], ARABIC_FAULTS[fault]


def test_the_numbers_of_arabic_are_in_the_right_case() -> None:
    """Estimates stand after نحو; a count of things takes the plural, the accusative or the genitive by its size."""
    (words,) = (words_of(path) for path in CATALOGUES if "dashboard" in path.parts)
    assert words["time.seconds"]["two"] == "ثانيتين"
    cleared = {name: bare(text) for name, text in words["files.cleared"].items()}
    assert {name: cleared[name] for name in ("few", "many", "other")} == {
        "few": "حذفت {n} ملفات",
        "many": "حذف {n} ملفا",
        "other": "حذف {n} ملف",
    }
    titles = ("compare.title", "new.title", "jobs.title", "datasets.title", "overlay.title", "sign_in.title")
    imperatives = r"^(?:قارن|ابدأ|أضف|ارفع|افتح|اعرض|سجل|ادخل|أنشئ)\b"
    assert [words[title] for title in titles if re.search(imperatives, bare(words[title]))] == []


def test_terms_and_units_that_arabic_readers_know_in_latin_letters_stand_beside_or_instead_of_arabic() -> None:
    (words,) = (words_of(path) for path in CATALOGUES if "dashboard" in path.parts)
    for key in (
        "data.length",
        "dry.tokens",
        "rows.mask",
        "field.max_length",
        "field.max_prompt_length",
        "compare.max_length",
    ):
        assert "(tokens)" in words[key], key
    # Isolated: within Arabic the unit would stand before its number.
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        assert words[f"size.{unit.lower()}"] == f"\u2066{{amount}} {unit}\u2069"


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_in_plain_english(page: Path) -> None:
    assert faults(enumerate(page.read_text(encoding="utf-8").splitlines(), 1), page.name) == []


@pytest.mark.parametrize("catalogue", CATALOGUES, ids=lambda path: str(path.relative_to(ROOT)))
def test_catalogues_are_in_plain_english(catalogue: Path) -> None:
    english = words_of(catalogue.with_name("en.json"))
    found = [f"{key}: {form}" for key, text in english.items() for form in forms(text) if faults(iter([(0, form)]), key)]
    assert found == []


@pytest.mark.parametrize("package", PLAIN)
def test_sources_are_in_plain_english(package: str) -> None:
    found = []
    for path in sorted((ROOT / package).rglob("*")):
        place = str(path.relative_to(ROOT))
        if path.suffix == ".py":
            found += faults(sentences(path.read_text(encoding="utf-8")), place)
        elif path.suffix == ".js" and "vendor" not in path.parts:
            comments = re.compile(r"^\s*(?://|\*|/\*)|//\s")
            lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            found += faults(((line, text) for line, text in lines if comments.search(text)), place)
    assert found == []


def test_a_fault_is_found() -> None:
    """The search itself works, on a sentence for each fault."""
    faulty = [
        "it is told as a warning",
        "the run goes on",
        "a training can be stopped",
        "after so long",
        "the loss is taken of it",
        "a mount in the place of a store",
        "the database did not do its part",
        "here one can GET",
        "it is no signature",
        "it is no fault of the job",
        "Is it well?",
    ]
    assert [len(faults(iter([(1, text)]), "here")) >= 1 for text in faulty] == [True] * len(ENGLISH_FAULTS)
    fine = ["there is no key", "it is no longer used", "a training run", "one training row", "the training data"]
    assert [text for text in fine if faults(iter([(1, text)]), "here")] == []
