"""Checks that decoding a tokenizer's ids restores the text.

A tokenizer of the wrong class can encode every text to nothing, and one without Arabic letters encodes them as unknown
tokens. A run would train on that without an error.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from trainer_core.errors import ModelRefused
from trainer_core.row_rules import Row
from trainer_core.wording import Message, say

_TEXTS = 400
_LETTERS = 2000
_SHOWN = 12


def check(tokenizer: Any, rows: Sequence[Row], model: str) -> Message | None:
    """Encodes and decodes texts of the first rows.

    Returns:
        What is lost, with its share and first occurrence; None if nothing is. Spaces and Unicode composition may differ.

    Raises:
        ModelRefused: more than half of the letters are lost, or no ids come out at all.
    """
    texts = [text[:_LETTERS] for row in rows[:_TEXTS] for text in _texts(row)][:_TEXTS]
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []
    letters = lost = lost_for_good = 0
    first: dict[str, str] = {}
    for text, ids in zip(texts, encoded, strict=True):
        before = _letters(text)
        after = _letters(tokenizer.decode(ids, skip_special_tokens=True))
        letters += len(before)
        if after == before:
            continue
        missing = (Counter(before) - Counter(after)).total()
        lost += missing
        # A tokenizer that lowercases text keeps its meaning.
        lost_for_good += (Counter(before.casefold()) - Counter(after.casefold())).total()
        if missing and not first:
            place = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after))
            first = {"before": before[place : place + _SHOWN], "after": after[place : place + _SHOWN]}
    if letters and (lost_for_good > letters / 2 or not any(map(len, encoded))):
        percent = round(100 * lost_for_good / letters)
        raise ModelRefused.at("model_name", say("tokenizer_ruins_text", model=model, percent=percent, **first))
    percent = round(100 * lost / letters, 2) if lost else 0
    return say("tokenizer_loses_text", model=model, percent=percent, **first) if lost else None


def _texts(row: Row) -> list[str]:
    values = [row[name] for name in ("prompt", "completion", "chosen", "rejected") if name in row]
    return [
        text
        for value in values
        for text in ([value] if isinstance(value, str) else [str(message.get("content") or "") for message in value])
        if text.strip()
    ]


def _letters(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text).split())
