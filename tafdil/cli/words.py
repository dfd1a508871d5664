"""The language of the command line, and its sentences in that language.

`TAFDIL_LANG` (`en` or `ar`) or else the locale decides. Help texts are in English.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, TextIO, cast

from tafdil.cli.streams import shows_direction
from tafdil.text import isolated, visible
from trainer_core.wording import LANGUAGES, Language, Message, restored, worded

VARIABLE = "TAFDIL_LANG"
# The first one that is set decides, as in POSIX.
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")
# The marks that set values apart from their neighbours, and signs before their numbers.
_MARKS = {0x200E: None, 0x2068: None, 0x2069: None}


def unknown_language() -> str | None:
    """The value of `TAFDIL_LANG` if the command line does not speak that language."""
    chosen = os.environ.get(VARIABLE, "")
    return chosen if chosen and chosen.lower() not in LANGUAGES else None


def language() -> Language:
    """The language that the environment asks for."""
    chosen = os.environ.get(VARIABLE, "").lower()
    if chosen in LANGUAGES:
        return chosen
    locale = next(filter(None, map(os.environ.get, _LOCALE)), "")
    return "ar" if re.match(r"ar(?![a-z])", locale, re.IGNORECASE) else "en"


def sentence(found: Mapping[str, Any], text: str = "message", code: str = "message_code") -> str:
    """A sentence of the service: a `Message` if it has a code that is known here, else its text."""
    if isinstance(found[text], Message):
        return found[text]
    known = restored(found, text, code)
    return known if isinstance(known, Message) else known.translate(_MARKS)


def in_words(text: str, stream: TextIO) -> str:
    """A sentence in the user's language, for a stream. Its values cannot move the cursor.

    On a terminal, values of the other direction are isolated from their neighbours.
    """
    is_marked = shows_direction(stream)
    chosen = language()
    if not isinstance(text, Message):
        return isolated(text) if is_marked else visible(text)
    params = {name: _safe(value, is_marked and chosen == "en") for name, value in text.params.items()}
    shown = worded(text.code, params, chosen)
    return shown if is_marked else shown.translate(_MARKS)


def _safe(value: Any, is_marked: bool) -> Any:
    if isinstance(value, Message):
        value = value.as_dict()
    match value:
        case {"code": str(), "params": dict(params)}:
            found = cast("dict[str, Any]", params)
            return {**value, "params": {name: _safe(each, is_marked) for name, each in found.items()}}
        case str():
            return isolated(value) if is_marked else visible(value)
        case list() | tuple():
            return [_safe(each, is_marked) for each in cast("list[Any]", value)]
        case _:
            return value
