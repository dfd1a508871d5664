"""The sentences that people read, in English and Arabic, each under a code.

`say("model_no_weights", model="m")` returns the English sentence, which is also a `Message`: it keeps its code and its
values, so that any program can word it again in another language. The catalogues `*.json` beside this file hold

    {"model_no_weights": {"en": "the model {model} has no safetensors weights", "ar": "…"}}

Where the number `n` decides the form, a language has an object of plural forms instead of a text (`one` and `other` in
English; `zero`, `one`, `two`, `few`, `many` and `other` in Arabic; a missing form is `other`).

To add a sentence, add it to a catalogue in both languages and call `say` with its code. Torch-free.
"""

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

Language = Literal["en", "ar"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
Text = str | dict[str, str]

_PLACE = re.compile(r"\{(\w+)\}")
# Text in another direction, such as a model's name in an Arabic sentence, must not reorder the words around it.
_ISOLATE, _POP = "\u2068", "\u2069"
_LEFT_TO_RIGHT = "\u200e"


class Message(str):
    """An English sentence that keeps its code and its values.

    Attributes:
        code: its key in the catalogues.
        params: its values by name: text, numbers, truth values, lists of these, or other messages.
    """

    __slots__ = ("code", "params")
    code: str
    params: dict[str, Any]

    def __new__(cls, code: str, params: Mapping[str, Any]) -> "Message":
        params = {name: _writable(value) for name, value in params.items()}
        message = super().__new__(cls, worded(code, params))
        message.code = code
        message.params = params
        return message

    def __getnewargs__(self) -> tuple[str, dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.code, self.params

    def as_dict(self) -> dict[str, Any]:
        """The code and the values as JSON; a value that is a message has the same form."""
        return {"code": self.code, "params": {name: _plain(value) for name, value in self.params.items()}}


def say(code: str, /, **params: Any) -> Message:
    """The sentence of a code. Raises `KeyError` for a code that no catalogue has, or a missing value."""
    return Message(code, params)


def said(message: str) -> dict[str, Any]:
    """The JSON form of a sentence, as errors and warnings store it.

    `message` is the English text. A `Message` adds `message_code` and `params`, from which `worded` makes it again.
    """
    found: dict[str, Any] = {"message": str(message)}
    if isinstance(message, Message):
        as_dict = message.as_dict()
        found |= {"message_code": as_dict["code"], "params": as_dict["params"]}
    return found


def rounded(value: float, digits: int = 3) -> float:
    """A number with `digits` significant digits, as a value of a sentence."""
    return float(f"{value:.{digits}g}")


def restored(stored: Mapping[str, Any], text: str = "message", code: str = "message_code") -> str:
    """A stored sentence: a `Message`, unless it had no code or the catalogues no longer have the code.

    Args:
        stored: an object with the sentence, its code and its `params`, as `said` makes it.
        text: the key of the sentence.
        code: the key of its code.
    """
    name, params = stored.get(code), stored.get("params")
    if isinstance(params, dict) and is_known(name):
        with suppress(KeyError):
            return Message(cast("str", name), cast("dict[str, Any]", params))
    return str(stored[text])


@cache
def catalogue(language: Language) -> dict[str, Text]:
    """Every text of a language by code."""
    files = sorted(Path(__file__).parent.glob("*.json"))
    entries = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    return {code: texts[language] for each in entries for code, texts in each.items()}


def is_known(code: Any) -> bool:
    """Whether the catalogues have a code."""
    return isinstance(code, str) and code in catalogue("en")


def worded(code: str, params: Mapping[str, Any], language: Language = "en") -> str:
    """The sentence of a code in a language. Raises as `say` does."""
    text = catalogue(language)[code]
    if isinstance(text, dict):
        n = params["n"]
        if not isinstance(n, int | float):
            # Another version stored something else under this name.
            raise KeyError("n")
        text = text.get(plural(n, language), text["other"])
    # Files may have a million bad rows, each with a sentence.
    pieces = _pieces(text)
    if len(pieces) == 1:
        return text
    return "".join([_shown(params[piece], language) if at % 2 else piece for at, piece in enumerate(pieces)])


@cache
def _pieces(text: str) -> list[str]:
    """A text in pieces: every second piece is the name of a value."""
    return _PLACE.split(text)


def plural(n: float, language: Language) -> str:
    """The plural form that a language uses with a number (CLDR's cardinal rules)."""
    if language == "en":
        return "one" if n == 1 else "other"
    if n in (0, 1, 2):
        return ("zero", "one", "two")[int(n)]
    if n != int(n):
        return "other"
    return "few" if 3 <= n % 100 <= 10 else "many" if 11 <= n % 100 <= 99 else "other"


def _shown(value: Any, language: Language) -> str:
    """A value within a sentence."""
    if language == "en" and isinstance(value, str):
        return value
    if isinstance(value, Message):
        value = {"code": value.code, "params": value.params}
    match value:
        case {"code": str(code), "params": dict(params)}:
            return worded(code, cast("dict[str, Any]", params), language)
        case list() | tuple():
            shown = [_shown(each, language) for each in cast("list[Any]", value)]
            return (", " if language == "en" else "، ").join(shown)
        case bool():
            return "true" if value else "false"
        case int() | float():
            # A large whole number, such as a bound, is not written as a power.
            is_whole = isinstance(value, int) or (1e6 <= abs(value) < 1e15 and value.is_integer())
            shown = f"{int(value):,}" if is_whole else f"{value:.6g}"
            # Without a mark, the minus of a number would stand behind it in Arabic.
            return f"{_LEFT_TO_RIGHT}{shown}" if language == "ar" and value < 0 else shown
        case _:
            return str(value) if language == "en" else f"{_ISOLATE}{value}{_POP}"


def _writable(value: Any) -> Any:
    """A value without unpaired surrogates, which neither UTF-8 nor a database accepts."""
    if type(value) is str and not value.isascii():
        return value.encode("utf-8", "backslashreplace").decode()
    return [_writable(each) for each in cast("list[Any]", value)] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return value.as_dict()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in cast("list[Any]", value)]
    # JSON has no NaN and no infinity.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
