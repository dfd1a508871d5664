"""Traits of an answer: numbers that need no model, and the rule "the side with more of the trait is preferred".

A dataset whose preferred answers differ from the others only in a trait teaches that trait. `pair_share` and `label_auc`
measure how well one trait separates the two sides: 0.5 means not at all, 1.0 means in every row. The opposite rule ("less of
the trait") scores 1 minus that. This module knows nothing of tokenizers, models or files.

A word is a run of letters and digits with their marks, or a number; it is compared without case, diacritics and tatweel.
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice

DIACRITICS = (
    "\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed"
    "\u08d3-\u08e1\u08e3-\u08ff"
)
"""Arabic vowel signs and other marks on letters, as the inside of a regex class. Hamza and madda are letters here."""
MARKS = f"{DIACRITICS}\u0653-\u0655\u0300-\u036f"
"""Combining marks that belong to their word."""
INVISIBLE = "\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
"""Characters without width that are not white space, as the inside of a regex class."""
PRESENTATION_FORMS = "\ufb50-\ufbb1\ufbd3-\ufd3d\ufd50-\ufd8f\ufd92-\ufdc7\ufe70-\ufe74\ufe76-\ufefc"
"""Letters stored by their shape. Not the whole-word signs from U+FDF0 on, which are typed on purpose."""
ARABIC_LETTERS = (
    f"\u0620-\u063f\u0641-\u064a\u066e\u066f\u0671-\u06d3\u06d5\u06ee\u06ef\u06fa-\u06ff\u0750-\u077f\u08a0-\u08c9"
    f"{PRESENTATION_FORMS}"
)
LATIN_LETTERS = "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"
EMOJI = (
    "\u231a\u231b\u23e9-\u23fa\u25fb-\u25fe\u2600-\u27bf\u2b1b\u2b1c\u2b50\u2b55\U0001f004\U0001f0cf\U0001f18e"
    "\U0001f191-\U0001f19a\U0001f1e6-\U0001f1ff\U0001f201-\U0001f251\U0001f300-\U0001f64f\U0001f680-\U0001f6ff"
    "\U0001f7e0-\U0001f7eb\U0001f90c-\U0001f9ff\U0001fa70-\U0001faff"
)

EMOJI_SEQUENCE = re.compile(
    rf"[\U0001f1e6-\U0001f1ff]{{2}}|[{EMOJI}][\ufe0f\U0001f3fb-\U0001f3ff]*(?:\u200d[{EMOJI}][\ufe0f\U0001f3fb-\U0001f3ff]*)*"
)
"""One emoji as people see it: a flag, or a sign with its colour and any joined signs."""
LIST_MARKER = re.compile(r"^[ \t]*(?:[-*+\u2022\u25aa\u25cf\u25e6\u2013\u2014]|\d{1,3}[.)\-])[ \t]+", re.MULTILINE)
MARKDOWN_MARK = re.compile(
    r"\*{2,}+|\*(?:(?=\S)|(?<=\S\*))|__(?:(?<!\w__)(?=\S)|(?<=\S__)(?!\w))|`+|\||^[ \t]*(?:#{1,6}(?=[ \t])|>)", re.MULTILINE
)
_DIGITS = "0-9\u0660-\u0669\u06f0-\u06f9"
_NOT_IN_NUMBER = rf"(?:(?<![{_DIGITS}].)|(?![{_DIGITS}]))"
"""After a mark: matches unless the mark is between two digits, as part of a number."""
COMMA = re.compile(rf"[,\u060c]{_NOT_IN_NUMBER}")
FULL_STOP = re.compile(rf"[.\u06d4]{_NOT_IN_NUMBER}")
WESTERN_MARK = re.compile(rf"[,;?%]{_NOT_IN_NUMBER}")
IS_LATIN, IS_ARABIC = re.compile(f"[{LATIN_LETTERS}]"), re.compile(f"[{ARABIC_LETTERS}]")
WORD = re.compile(
    rf"\w[\w{MARKS}{INVISIBLE}]*(?:[.,\u060c\u066b\u066c](?<=[{_DIGITS}].)(?=[{_DIGITS}])[\w{MARKS}{INVISIBLE}]*)*"
)
IN_NUMBER = re.compile(rf"[^\w\s](?<=[{_DIGITS}].)(?=[{_DIGITS}])")
_ENDS = ".!?\u061f\u06d4\u2026"
SENTENCE_END = re.compile(f"(?<![{_ENDS}])[{_ENDS}]++(?=[\\s\"'\u00bb\u201d)\\]]|$)|\n")
WORD_START = re.compile(r"\w")

_CLASSES = {
    "commas": ",\u060c",
    "full_stops": ".\u06d4",
    "question_marks": "?\u061f",
    "exclamation_marks": "!",
    "western_marks": ",;?%",
    "western_digits": "0-9",
    "arabic_indic_digits": "\u0660-\u0669",
    "persian_digits": "\u06f0-\u06f9",
    "latin_letters": LATIN_LETTERS,
    "arabic_letters": ARABIC_LETTERS,
    "diacritics": DIACRITICS,
    "tatweel": "\u0640",
    "hamza_letters": "\u0621-\u0626\u0653-\u0655",
    "ta_marbuta": "\u0629",
    "alef_maqsura": "\u0649",
    "persian_letters": "\u067e\u0686\u0698\u06a9\u06af\u06cc\u06c0\u06c1\u06be\u06d2\u06d3\u06d5\u0679\u0688\u0691\u06ba",
    "presentation_forms": PRESENTATION_FORMS,
    "invisible": INVISIBLE,
    "emoji": EMOJI,
    "list_signs": "*+.)\u2022\u25aa\u25cf\u25e6\u2013\u2014-",
    "markdown_signs": "#>*_`|",
    "line_breaks": "\n",
}
_PATTERNS = {kind: re.compile(f"[{inside}]") for kind, inside in _CLASSES.items()}
_NOT_OTHER = {"commas", "full_stops", "question_marks", "exclamation_marks", "markdown_signs"}


class _Kinds(dict[str, tuple[str, ...]]):
    """The kinds of a character, determined when it first occurs."""

    def __missing__(self, char: str) -> tuple[str, ...]:
        kinds = {kind for kind, pattern in _PATTERNS.items() if pattern.match(char)}
        if unicodedata.category(char)[0] == "P" and not kinds & _NOT_OTHER:
            kinds.add("other_punctuation")
        self[char] = tuple(sorted(kinds))
        return self[char]


_KINDS = _Kinds()


def is_other_punctuation(char: str) -> bool:
    """Whether a character is punctuation that no other trait counts."""
    return "other_punctuation" in _KINDS[char]


class Text:
    """What the traits need from one text, each part computed once."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def kinds(self) -> dict[str, int]:
        """Characters of each kind."""
        found: dict[str, int] = dict.fromkeys(_PATTERNS, 0) | {"other_punctuation": 0}
        for char, count in Counter(self.text).items():
            for kind in _KINDS[char]:
                found[kind] += count
        return found

    @cached_property
    def words(self) -> list[str]:
        return WORD.findall(self.text)

    @cached_property
    def keys(self) -> list[str]:
        """The words as they are compared: without case, diacritics, tatweel and invisible characters."""
        kinds, words = self.kinds, self.words
        if not (kinds["latin_letters"] or kinds["diacritics"] or kinds["tatweel"] or kinds["invisible"]):
            return words
        return _NOT_COMPARED.sub("", " ".join(words)).casefold().split(" ") if words else words

    @cached_property
    def distinct(self) -> frozenset[str]:
        return frozenset(self.keys)

    @cached_property
    def sentences(self) -> int:
        text = LIST_MARKER.sub("", self.text) if self.kinds["list_signs"] else self.text
        return sum(1 for piece in SENTENCE_END.split(text) if WORD_START.search(piece))

    @cached_property
    def has_digits(self) -> bool:
        kinds = self.kinds
        return bool(kinds["western_digits"] or kinds["arabic_indic_digits"] or kinds["persian_digits"])


_NOT_COMPARED = re.compile(f"[{DIACRITICS}\u0640{INVISIBLE}]")


@lru_cache(maxsize=32)
def seen(text: str) -> Text:
    """What the traits need from a text. Caches the last few: every trait of a row uses the same ones."""
    return Text(text)


Measure = Callable[[str, str], float]


@dataclass(frozen=True)
class Trait:
    """A number computed from an answer, or from a prompt and its answer, without a model.

    Attributes:
        name: for machines: lower case, words joined by underscores.
        description: what is measured, in a few English words.
        measure: takes the prompt and the answer; returns the number.
    """

    name: str
    description: str
    measure: Measure


def _count(kind: str) -> Measure:
    return lambda _, answer: float(seen(answer).kinds[kind])


def _matches(pattern: re.Pattern[str], kind: str, *, exact_without_digits: bool = False) -> Measure:
    """Matches of a pattern that needs a character of `kind`; texts without one are not searched."""

    def measure(prompt: str, answer: str) -> float:
        text = seen(answer)
        found = text.kinds[kind]
        if not found or (exact_without_digits and not text.has_digits):
            return float(found)
        return float(len(pattern.findall(answer)))

    return measure


def _mean_word_length(prompt: str, answer: str) -> float:
    words = seen(answer).words
    return sum(map(len, words)) / len(words) if words else 0.0


def _mixed_script_words(prompt: str, answer: str) -> float:
    text = seen(answer)
    if not (text.kinds["latin_letters"] and text.kinds["arabic_letters"]):
        return 0.0
    return float(sum(1 for word in text.words if IS_LATIN.search(word) and IS_ARABIC.search(word)))


def _invisible(prompt: str, answer: str) -> float:
    text = seen(answer)
    found = text.kinds["invisible"]
    if found and text.kinds["emoji"]:
        found -= sum(sequence.count("\u200d") for sequence in EMOJI_SEQUENCE.findall(answer))
    return float(found)


def _other_punctuation(prompt: str, answer: str) -> float:
    text = seen(answer)
    found = text.kinds["other_punctuation"]
    if found and text.has_digits:
        found -= sum(1 for mark in IN_NUMBER.findall(answer) if is_other_punctuation(mark))
    return float(found)


def _repeated_prompt_words(prompt: str, answer: str) -> float:
    asked = seen(prompt).distinct
    return len(asked & seen(answer).distinct) / len(asked) if asked else 0.0


def _first_prompt_word_at(prompt: str, answer: str) -> float:
    asked = seen(prompt).distinct
    for index, key in enumerate(seen(answer).keys):
        if key in asked:
            return float(next(islice(WORD.finditer(answer), index, None)).start())
    return float(len(answer))


def _repeated_words(prompt: str, answer: str) -> float:
    text = seen(answer)
    return float(len(text.keys) - len(text.distinct))


TRAITS: tuple[Trait, ...] = (
    Trait("characters", "characters", lambda _, answer: float(len(answer))),
    Trait("words", "words", lambda _, answer: float(len(seen(answer).words))),
    Trait("mean_word_length", "characters per word", _mean_word_length),
    Trait(
        "longest_word",
        "characters of the longest word",
        lambda _, answer: float(max(map(len, seen(answer).words), default=0)),
    ),
    Trait("sentences", "sentences", lambda _, answer: float(seen(answer).sentences)),
    Trait("commas", "commas, \u060c and ,", _matches(COMMA, "commas", exact_without_digits=True)),
    Trait("full_stops", "full stops", _matches(FULL_STOP, "full_stops", exact_without_digits=True)),
    Trait("question_marks", "question marks, \u061f and ?", _count("question_marks")),
    Trait("exclamation_marks", "exclamation marks", _count("exclamation_marks")),
    Trait("other_punctuation", "punctuation of any other kind", _other_punctuation),
    Trait(
        "western_marks",
        "Western marks that Arabic has its own form of: , ; ? %",
        _matches(WESTERN_MARK, "western_marks", exact_without_digits=True),
    ),
    Trait("line_breaks", "line breaks", _count("line_breaks")),
    Trait("list_markers", "lines that start with a bullet or a number", _matches(LIST_MARKER, "list_signs")),
    Trait(
        "markdown_marks",
        "Markdown marks: headings, quotes, emphasis, code, tables",
        _matches(MARKDOWN_MARK, "markdown_signs"),
    ),
    Trait("western_digits", "digits 0 to 9", _count("western_digits")),
    Trait("arabic_indic_digits", "digits \u0660 to \u0669", _count("arabic_indic_digits")),
    Trait("persian_digits", "digits \u06f0 to \u06f9", _count("persian_digits")),
    Trait("latin_letters", "Latin letters", _count("latin_letters")),
    Trait("mixed_script_words", "words with both Latin and Arabic letters", _mixed_script_words),
    Trait("diacritics", "diacritics, tanwin among them", _count("diacritics")),
    Trait("tatweel", "tatweel, the stroke that lengthens a word", _count("tatweel")),
    Trait("hamza_letters", "letters that carry a hamza or madda, and the hamza itself", _count("hamza_letters")),
    Trait("ta_marbuta", "ta marbuta", _count("ta_marbuta")),
    Trait("alef_maqsura", "alef maqsura", _count("alef_maqsura")),
    Trait("persian_letters", "letters of Persian and Urdu", _count("persian_letters")),
    Trait("presentation_forms", "Arabic letters stored by their shape", _count("presentation_forms")),
    Trait("invisible_characters", "invisible characters: direction marks, joiners, soft hyphens", _invisible),
    Trait("emoji", "emoji", _matches(EMOJI_SEQUENCE, "emoji")),
    Trait("repeated_prompt_words", "share of the prompt's words that the answer repeats", _repeated_prompt_words),
    Trait("first_prompt_word_at", "characters before the first word of the prompt in the answer", _first_prompt_word_at),
    Trait("repeated_words", "words that stood in the answer before", _repeated_words),
)


def pair_share(chosen: Sequence[float], rejected: Sequence[float]) -> float | None:
    """Share of pairs in which the chosen side has more of a trait. Ties count a half; without pairs, None.

    Raises:
        ValueError: if the two sides differ in length.
    """
    halves = sum(2 if more > less else 1 if more == less else 0 for more, less in zip(chosen, rejected, strict=True))
    return halves / (2 * len(chosen)) if len(chosen) else None


def label_auc(values: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Share of all (desirable, undesirable) pairs of rows in which the desirable one has more of a trait.

    Ties count a half. If one class is empty, None. Exact, in O(n log n).

    Raises:
        ValueError: if there are not as many labels as values.
    """
    rows = list(zip(values, labels, strict=True))
    undesirable = sorted(value for value, label in rows if not label)
    desirable = [value for value, label in rows if label]
    if not desirable or not undesirable:
        return None
    halves = sum(bisect_left(undesirable, value) + bisect_right(undesirable, value) for value in desirable)
    return halves / (2 * len(desirable) * len(undesirable))
