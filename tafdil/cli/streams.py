"""Prepares the standard streams, so that any text can be printed in any console encoding.

A stream keeps its encoding. Characters that it cannot encode are written as escapes, such as `\\u0623`.
"""

import codecs
import io
import json
import sys
from typing import Any, TextIO

# Error handlers that never raise.
_NEVER_FAILING = frozenset({"backslashreplace", "ignore", "namereplace", "replace", "xmlcharrefreplace"})


def prepare() -> None:
    """Lets the standard streams write every character. An error handler that the user chose stays."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors not in _NEVER_FAILING:
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.errors == "strict":
        sys.stdin.reconfigure(errors="replace")


def is_unicode(stream: TextIO) -> bool:
    """Whether a stream writes UTF-8, UTF-16 or UTF-32."""
    return _encoding(stream).startswith("utf-")


def shows_direction(stream: TextIO) -> bool:
    """Whether direction marks help on a stream: it is a terminal and can encode them."""
    return stream.isatty() and is_unicode(stream)


def as_json(value: Any, stream: TextIO, indent: int | None = None) -> str:
    """A value as JSON for a stream: UTF-8 if the stream uses it, otherwise ASCII with escapes."""
    if _encoding(stream).startswith("utf-8"):
        text = json.dumps(value, ensure_ascii=False, indent=indent)
        # UTF-8 cannot encode an unpaired surrogate, but JSON can escape it.
        if not any("\ud800" <= letter <= "\udfff" for letter in text):
            return text
    return json.dumps(value, indent=indent)


def _encoding(stream: TextIO) -> str:
    name = getattr(stream, "encoding", None) or "utf-8"
    return codecs.lookup(name).name
