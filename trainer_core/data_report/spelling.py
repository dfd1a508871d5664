"""What Arabic text carries that a reader hardly sees: signs of another keyboard, a broken export or an unusual spelling.

`signs_of` looks at one text. `Spellings` looks at all words of a file, because a spelling is unusual only next to another.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple

from trainer_core.traits import ARABIC_LETTERS, IS_ARABIC, PRESENTATION_FORMS, Text

SIGNS = (
    *("diacritics", "tatweel", "presentation_forms", "reversed", "bidi_controls", "zero_width", "persian_letters"),
    *("western_digits", "arabic_indic_digits", "persian_digits", "arabic_marks", "western_marks", "persian_marks"),
    *("latin_letters", "mixed_script_words", "arabizi", "emoji", "mojibake", "not_nfc", "hamza_letters", "ta_marbuta"),
    "alef_maqsura",
)
"""Everything that a report counts answers with."""
_COUNTED = tuple(sign for sign in SIGNS if sign in Text("").kinds)
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_ZERO_WIDTH = re.compile("[\u00ad\u180e\u200b-\u200d\u2060-\u2064\ufeff]")
_JOINED_EMOJI = re.compile("(?<=[\u2600-\u27bf\ufe0f\U0001f300-\U0001faff])\u200d")
_MARKS = {"arabic_marks": re.compile("[\u060c\u061b\u061f\u066a]"), "persian_marks": re.compile("[\u06d4\u066b\u066c]")}

# UTF-8 read as Latin-1 or Windows-1252; the same read as Windows-1256; Windows-1256 read as Windows-1252.
_MOJIBAKE = re.compile(
    "(?:[\u00d8-\u00db][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]){2}"
    "|(?:[\u0637\u0638\u063a][\u00a0-\u00bf\u0152\u0153\u0192\u02c6\u2013-\u203a\u20ac\u2122]){2}"
    "|(?=[\u00c0-\u00ff]*[\u00c7\u00e1\u00c8\u00d1\u00cf\u00e3\u00e4])[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff]{4}|\ufffd"
)
_ARABIZI_DIGIT = re.compile(
    r"\b(?!\d+(?:nd|rd|th|st)\b)(?=[a-z']*[235679][a-z])(?=[a-z235679']*[aeiou])[a-z235679']{3,}\b", re.IGNORECASE
)
_ARABIZI_WORD = re.compile(
    r"\b(?:ana|inta|enta|enti|inti|howa|heya|shu|shou|esh|eih|leh|leish|kifak|keefak|mish|mesh|mush|keda|kda|habibi|yalla|"
    r"inshallah|mashallah|hamdulillah|elhamdulillah|wallah|khalas|bas|aywa|marhaba|salam|shukran|afwan|kteer|ktir|sho|wesh|"
    r"bzaf|chkoun|wach|kifash|daba|zwin)\b",
    re.IGNORECASE,
)
_LATIN_WORD = re.compile(r"[A-Za-z][A-Za-z0-9']*")
_FORM_RUN = re.compile(f"[{PRESENTATION_FORMS}]{{3,}}")
_NEVER_FIRST = re.compile(f"(?<![{ARABIC_LETTERS}\u0640\u064b-\u0652\u0670])[\u0629\u0649][{ARABIC_LETTERS}]{{2,}}")
"""A ta marbuta or alef maqsura at the beginning of a word: the word is written backwards."""


def signs_of(text: Text) -> Iterator[tuple[str, int]]:
    """Each sign in a text and how often it occurs; signs whose number says nothing count once."""
    kinds, content = text.kinds, text.text
    for sign in _COUNTED:
        if kinds[sign]:
            yield sign, kinds[sign]
    for sign, pattern in _MARKS.items():
        if found := len(pattern.findall(content)):
            yield sign, found
    if kinds["invisible"]:
        yield from _invisible_signs(content)
    if kinds["latin_letters"]:
        yield from _latin_signs(text)
    if is_reversed(text):
        yield "reversed", 1
    if (kinds["latin_letters"] or kinds["other_punctuation"] or "\ufffd" in content) and _MOJIBAKE.search(content):
        yield "mojibake", 1
    if not unicodedata.is_normalized("NFC", content):
        yield "not_nfc", 1


def _invisible_signs(content: str) -> Iterator[tuple[str, int]]:
    if found := len(_BIDI.findall(content)):
        yield "bidi_controls", found
    if found := len(_ZERO_WIDTH.findall(_JOINED_EMOJI.sub("", content))):
        yield "zero_width", found


def _latin_signs(text: Text) -> Iterator[tuple[str, int]]:
    if text.kinds["arabic_letters"] and (mixed := sum(1 for word in text.words if _is_mixed(word))):
        yield "mixed_script_words", mixed
    if is_arabizi(text.text):
        yield "arabizi", 1


def _is_mixed(word: str) -> bool:
    return IS_ARABIC.search(word) is not None and _LATIN_WORD.search(word) is not None


def is_arabizi(content: str) -> bool:
    """Whether a text has Arabic in Latin letters: at least two of its words, and a fifth of its Latin ones."""
    words = len(_LATIN_WORD.findall(content))
    spelled = {found.span() for pattern in (_ARABIZI_DIGIT, _ARABIZI_WORD) for found in pattern.finditer(content)}
    return len(spelled) >= 2 and 5 * len(spelled) >= words


def is_reversed(text: Text) -> bool:
    """Whether a text has Arabic words letter by letter in the wrong order, as some PDFs store them."""
    content, kinds = text.text, text.kinds
    if kinds["presentation_forms"]:
        runs = _FORM_RUN.findall(content)
        backwards = sum(_is(run[0], "final") or _is(run[-1], "initial") for run in runs)
        forwards = sum(_is(run[0], "initial") or _is(run[-1], "final") for run in runs)
        if backwards > forwards:
            return True
    return bool(kinds["ta_marbuta"] or kinds["alef_maqsura"]) and len(_NEVER_FIRST.findall(content)) >= 2


def _is(letter: str, form: str) -> bool:
    return unicodedata.decomposition(letter).startswith(f"<{form}>")


# -- spellings of one word

Variant = Literal["hamza", "ya", "ta_marbuta"]
VARIANTS: tuple[Variant, ...] = ("hamza", "ya", "ta_marbuta")
_HAMZA = re.compile("[\u0622\u0623\u0625]")
_SHORTEST = 3
_LEAST_USUAL = 5
"""The usual spelling must occur this often, and five times as often as the other."""


class Spelled(NamedTuple):
    """A word in an unusual spelling, and the usual one in the same file."""

    word: str
    usual: str
    times: int


class Spellings:
    """Counts the words of each side, and finds those that are mostly spelled otherwise."""

    def __init__(self) -> None:
        self._words: dict[str, Counter[str]] = {}

    def add(self, side: str, text: Text) -> None:
        self._words.setdefault(side, Counter()).update(text.keys)

    def unusual(self) -> dict[Variant, dict[str, int]]:
        """By variant and side: words whose usual spelling is another."""
        usual = self._usual()
        found: dict[Variant, dict[str, int]] = {variant: dict.fromkeys(self._words, 0) for variant in VARIANTS}
        for side, words in self._words.items():
            for word, count in words.items():
                for variant in usual.get(word, {}):
                    found[variant][side] += count
        return found

    def examples(self, most: int = 5) -> dict[Variant, list[Spelled]]:
        """By variant, the words that are most often in an unusual spelling."""
        together = sum(self._words.values(), Counter[str]())
        found: dict[Variant, list[Spelled]] = {variant: [] for variant in VARIANTS}
        for word, others in self._usual().items():
            for variant, other in others.items():
                found[variant].append(Spelled(word, other, together[word]))
        return {variant: sorted(each, key=lambda one: (-one.times, one.word))[:most] for variant, each in found.items()}

    def _usual(self) -> dict[str, dict[Variant, str]]:
        """For each word in an unusual spelling, the usual one."""
        together = sum(self._words.values(), Counter[str]())
        found: dict[str, dict[Variant, str]] = {}
        for word, count in together.items():
            if count < _LEAST_USUAL or len(word) < _SHORTEST:
                continue
            for variant, other in _others(word):
                if together[other] and count >= 5 * together[other]:
                    found.setdefault(other, {})[variant] = word
        return found


def _others(word: str) -> Iterator[tuple[Variant, str]]:
    """The word in the spellings that would be unusual beside it."""
    if _HAMZA.search(word):
        yield "hamza", _HAMZA.sub("\u0627", word)
    if word[-1] in "\u0649\u064a":
        yield "ya", word[:-1] + ("\u064a" if word[-1] == "\u0649" else "\u0649")
    if word[-1] in "\u0629\u0647":
        yield "ta_marbuta", word[:-1] + ("\u0647" if word[-1] == "\u0629" else "\u0629")
