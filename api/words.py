"""The dashboard's catalogues, for replies that have texts in both languages."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

_LOCALES = Path(__file__).parent / "dashboard" / "static" / "locales"


class Text(BaseModel):
    """A text in both languages."""

    en: str
    ar: str


@cache
def catalogue(language: str) -> dict[str, Any]:
    """A language's words by their keys."""
    return json.loads((_LOCALES / f"{language}.json").read_text(encoding="utf-8"))


def text_of(key: str) -> Text:
    """What both catalogues have under a key."""
    return Text(en=catalogue("en")[key], ar=catalogue("ar")[key])
