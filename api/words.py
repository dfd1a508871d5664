"""The dashboard's catalogues, for replies with texts in both languages."""

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
    """A language's texts by key."""
    return json.loads((_LOCALES / f"{language}.json").read_text(encoding="utf-8"))


def text_of(key: str) -> Text:
    """The text of a key in both languages."""
    return Text(en=catalogue("en")[key], ar=catalogue("ar")[key])
