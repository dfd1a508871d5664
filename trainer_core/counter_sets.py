"""Counter-sets: pairs in which a trait no longer separates the preferred answer from the other.

A model that learned a trait loses its margin on the trait's counter-set; one that learned something else keeps it. For each
trait the set is made in one of three ways:

`exchanged`: the two answers exchange the trait. Marks move from the side with more of them to the other; words stay.
`made_equal`: both answers are written without the trait.
`opposite_rows`: no rule changes the trait alone, so these are the rows in which it points the other way.

Knows nothing of tokenizers, models or files.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from trainer_core import traits
from trainer_core.traits import Trait

CounterKind = Literal["exchanged", "made_equal", "opposite_rows"]


class Pair(NamedTuple):
    """A prompt with a preferred and another answer."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class CounterSet:
    """The counter-set of one trait.

    Attributes:
        pairs: the changed pairs, or for `opposite_rows` the pairs as they are.
        rows: the index of each pair among those that were given.
        left_out: pairs that differ in the trait, but whose traits the rule could not exchange or equalise.
    """

    trait: Trait
    kind: CounterKind
    pairs: tuple[Pair, ...]
    rows: tuple[int, ...]
    left_out: int = 0


def counter_set(trait: Trait, pairs: Sequence[Pair], *, chosen_has_more: bool) -> CounterSet:
    """The counter-set of a trait. Pairs whose answers have equal amounts of the trait are left out.

    Args:
        chosen_has_more: the direction in which the trait points in the training data.
    """
    measured = [(trait.measure(pair.prompt, pair.chosen), trait.measure(pair.prompt, pair.rejected)) for pair in pairs]
    differing = [row for row, (chosen, rejected) in enumerate(measured) if chosen != rejected]
    kind = kind_of(trait)
    if kind == "opposite_rows":
        rows = [row for row in differing if (measured[row][0] > measured[row][1]) != chosen_has_more]
        return CounterSet(trait, kind, tuple(pairs[row] for row in rows), tuple(rows))
    found: list[tuple[int, Pair]] = []
    for row in differing:
        changed = _changed(trait, pairs[row])
        after = changed and (trait.measure(changed.prompt, changed.chosen), trait.measure(changed.prompt, changed.rejected))
        if changed and after and (after == measured[row][::-1] if kind == "exchanged" else after[0] == after[1]):
            found.append((row, changed))
    left_out = len(differing) - len(found)
    return CounterSet(trait, kind, tuple(pair for _, pair in found), tuple(row for row, _ in found), left_out)


def kind_of(trait: Trait) -> CounterKind:
    """How the counter-set of a trait is made."""
    if trait.name in _MOVED:
        return "exchanged"
    return "made_equal" if trait.name in _WITHOUT else "opposite_rows"


def _changed(trait: Trait, pair: Pair) -> Pair | None:
    """The pair after the trait's rule; None if the rule cannot change it, or would leave an answer without words."""
    if pattern := _MOVED.get(trait.name):
        moved = exchange_marks(pattern, pair.chosen, pair.rejected)
        return moved and Pair(pair.prompt, *moved)
    chosen, rejected = (without(trait, answer) for answer in (pair.chosen, pair.rejected))
    if not (traits.WORD_START.search(chosen) and traits.WORD_START.search(rejected)):
        return None
    return Pair(pair.prompt, chosen, rejected)


# -- marks that move


def exchange_marks(pattern: re.Pattern[str], one: str, other: str) -> tuple[str, str] | None:
    """Two texts after exchanging their numbers of a mark; words and their order stay.

    The text with more marks gives its surplus to the other. A mark moves to the end of the word that is equally far into the
    other text, or of the nearest one that no punctuation follows. The mark at the end of a text moves first if the other
    text ends without one, and last otherwise. None if the other text has too few words.
    """
    given, kept = list(pattern.finditer(one)), list(pattern.finditer(other))
    if len(given) < len(kept):
        exchanged = exchange_marks(pattern, other, one)
        return (exchanged[1], exchanged[0]) if exchanged else None
    ends, other_ends = _word_ends(one), _word_ends(other)
    final = [mark for mark in given if not ends or mark.start() >= ends[-1]]
    inner = given[: len(given) - len(final)]
    is_open = bool(other_ends) and not other[other_ends[-1] :].strip()
    moving = ([*final, *inner] if is_open else [*inner, *final])[: len(given) - len(kept)]
    shares = [bisect_right(ends, mark.start()) / max(1, len(ends)) for mark in moving]
    places = _free_places(other, shares)
    if places is None:
        return None
    for place, mark in sorted(zip(places, moving, strict=True), key=lambda each: each[0], reverse=True):
        other = other[:place] + mark[0] + other[place:]
    for mark in sorted(moving, key=lambda each: each.start(), reverse=True):
        one = _removed(one, mark.start(), mark.end())
    return one, other


def _word_ends(text: str) -> list[int]:
    return [word.end() for word in traits.WORD.finditer(text)]


def _free_places(text: str, shares: Sequence[float]) -> list[int] | None:
    """For each share of a text's words, the nearest end of a word before white space or the end; each is used once."""
    ends = _word_ends(text)
    free = {i: end for i, end in enumerate(ends, start=1) if text[end : end + 1].isspace() or end == len(text)}
    places: list[int] = []
    for share in shares:
        if not free:
            return None
        nearest = min(free, key=lambda i: (abs(i - share * len(ends)), i))
        places.append(free.pop(nearest))
    return places


def _removed(text: str, start: int, end: int) -> str:
    """A text without a part. The words around the part stay separate."""
    before, after = text[:start], text[end:]
    if before.endswith(" ") and (not after or after[0].isspace()):
        return before[:-1] + after
    if after.startswith(" ") and (not before or before[-1] == "\n"):
        return before + after[1:]
    joins = before and after and not before[-1].isspace() and not after[0].isspace()
    return f"{before} {after}" if joins else before + after


_MOVED = {
    "commas": traits.COMMA,
    "full_stops": traits.FULL_STOP,
    "question_marks": re.compile("[?\u061f]"),
    "exclamation_marks": re.compile("!"),
}


# -- answers without a trait


def without(trait: Trait, answer: str) -> str:
    """An answer without a trait whose counter-set is `made_equal`."""
    return _WITHOUT[trait.name](answer)


def marks_of(trait: Trait) -> re.Pattern[str] | None:
    """The marks of a trait whose counter-set is `exchanged`."""
    return _MOVED.get(trait.name)


def _translated(table: dict[str, str]) -> Callable[[str], str]:
    mapping = str.maketrans(table)
    return lambda answer: answer.translate(mapping)


def _deleted(inside: str) -> Callable[[str], str]:
    pattern = re.compile(f"[{inside}]")
    return lambda answer: pattern.sub("", answer)


def _replaced(pattern: re.Pattern[str], marks: dict[str, str]) -> Callable[[str], str]:
    return lambda answer: pattern.sub(lambda found: marks[found[0]], answer)


def _until_none(pattern: re.Pattern[str]) -> Callable[[str], str]:
    """Removes matches until there are none: another list marker may follow a removed one."""

    def remove(answer: str) -> str:
        while found := pattern.search(answer):
            answer = _removed(answer, found.start(), found.end())
        return answer

    return remove


def _without_other_punctuation(answer: str) -> str:
    place = 0
    while place < len(answer):
        if traits.is_other_punctuation(answer[place]) and not traits.IN_NUMBER.match(answer, place):
            answer = _removed(answer, place, place + 1)
        else:
            place += 1
    return answer


def _without_line_breaks(answer: str) -> str:
    return re.sub(r"[ \t\r]*\n\s*", " ", answer.strip("\r\n"))


def _without_invisible(answer: str) -> str:
    """Keeps joiners inside an emoji."""
    return _INVISIBLE_OR_EMOJI.sub(lambda found: "" if found["invisible"] else found[0], answer)


_INVISIBLE_OR_EMOJI = re.compile(f"{traits.EMOJI_SEQUENCE.pattern}|(?P<invisible>[{traits.INVISIBLE}])")


_EMOJI = rf"[ \t]*(?:{traits.EMOJI_SEQUENCE.pattern})"
_EMOJI_AND_SPACE = re.compile(rf"^(?:{_EMOJI})+[ \t]*|{_EMOJI}", re.MULTILINE)


def _with_scripts_apart(answer: str) -> str:
    return traits.WORD.sub(lambda word: " ".join(_runs_of_script(word[0])), answer)


def _runs_of_script(word: str) -> Iterator[str]:
    """Cuts a word between Latin and Arabic letters; other characters stay with the letter before them."""
    start, last = 0, None
    for place, char in enumerate(word):
        script = "latin" if traits.IS_LATIN.match(char) else "arabic" if traits.IS_ARABIC.match(char) else last
        if last and script != last:
            yield word[start:place]
            start = place
        last = script
    yield word[start:]


def _digits(first: str) -> str:
    return "".join(chr(ord(first) + i) for i in range(10))


_WESTERN, _ARABIC_INDIC, _PERSIAN = _digits("0"), _digits("\u0660"), _digits("\u06f0")
_CARRIERS = dict(zip("\u0622\u0623\u0625\u0624\u0626", "\u0627\u0627\u0627\u0648\u064a", strict=True))
_PERSIAN_LETTERS = dict(
    zip(
        "\u067e\u0686\u0698\u06a9\u06af\u06cc\u06c0\u06c1\u06be\u06d2\u06d3\u06d5\u0679\u0688\u0691\u06ba",
        "\u0628\u062c\u0632\u0643\u0643\u064a\u0647\u0647\u0647\u064a\u064a\u0647\u062a\u062f\u0631\u0646",
        strict=True,
    )
)
_PRESENTATION_FORM = re.compile(f"[{traits.PRESENTATION_FORMS}]")

_WITHOUT: dict[str, Callable[[str], str]] = {
    "other_punctuation": _without_other_punctuation,
    "western_marks": _replaced(traits.WESTERN_MARK, dict(zip(",;?%", "\u060c\u061b\u061f\u066a", strict=True))),
    "line_breaks": _without_line_breaks,
    "list_markers": _until_none(traits.LIST_MARKER),
    "markdown_marks": _until_none(traits.MARKDOWN_MARK),
    "western_digits": _translated(dict(zip(_WESTERN, _ARABIC_INDIC, strict=True))),
    "arabic_indic_digits": _translated(dict(zip(_ARABIC_INDIC, _WESTERN, strict=True))),
    "persian_digits": _translated(dict(zip(_PERSIAN, _ARABIC_INDIC, strict=True))),
    "mixed_script_words": _with_scripts_apart,
    "diacritics": _deleted(traits.DIACRITICS),
    "tatweel": _deleted("\u0640"),
    "hamza_letters": _translated({**_CARRIERS, **dict.fromkeys("\u0621\u0653\u0654\u0655", "")}),
    "ta_marbuta": _translated({"\u0629": "\u0647"}),
    "alef_maqsura": _translated({"\u0649": "\u064a"}),
    "persian_letters": _translated(_PERSIAN_LETTERS),
    "presentation_forms": lambda answer: _PRESENTATION_FORM.sub(
        lambda found: unicodedata.normalize("NFKC", found[0]), answer
    ),
    "invisible_characters": _without_invisible,
    "emoji": lambda answer: _EMOJI_AND_SPACE.sub("", answer),
}
