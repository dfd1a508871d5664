"""The first rows of a file for people who choose how to read it: as chat turns, and the first cells of each column.

Torch-free: no model is known yet, so the turns have no template and no tokens.
"""

import json
from collections.abc import Iterable
from typing import Any

from trainer_core.layouts.forms import is_absent
from trainer_core.row_rules import RENDERED, Row, turns_of

_ANSWERS = ("completion", "chosen", "rejected")
_MOST_CHARACTERS = 10_000
_CELLS, _CELL_CHARACTERS = 3, 200
_MOST_COLUMNS = 200


def conversation(row: Row) -> dict[str, Any]:
    """A row in Tafdil's own format, complete or not, as the turns that a chat template receives.

    Returns:
        `row` (its line, if known), `prompt` (turns), `answers` (turns of each answer), and `label`. Text is shortened.
    """
    given = {name: row[name] for name in ("prompt", *_ANSWERS) if _is_spoken(row.get(name))}
    return {
        "row": row.get("row"),
        "prompt": _turns(given.pop("prompt", []), "user"),
        "answers": {name: _turns(value, "assistant") for name, value in given.items()},
        "label": row["label"] if isinstance(row.get("label"), bool) else None,
    }


def _is_spoken(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(turn, dict) for turn in value))


def _turns(value: Any, role: str) -> list[dict[str, Any]]:
    """Turns with their role, their content, and the other fields that templates render."""
    found: list[dict[str, Any]] = []
    for turn in turns_of(value, role):
        more = {name: turn[name] for name in RENDERED if turn.get(name) is not None}
        texts = {name: _short(part, _MOST_CHARACTERS) for name, part in more.items()}
        found.append({"role": str(turn.get("role")), "content": _short(turn.get("content"), _MOST_CHARACTERS), **texts})
    return found


def cells(rows: Iterable[Any]) -> dict[str, list[str]]:
    """The first values of each column as text, shortened."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, value in row.items() if isinstance(row, dict) else ():
            if is_absent(value) or value == "" or (name not in found and len(found) == _MOST_COLUMNS):
                continue
            values = found.setdefault(name, [])
            if len(values) < _CELLS:
                values.append(_short(value, _CELL_CHARACTERS))
    return found


def _short(value: Any, most: int) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= most else f"{text[:most]}…"
    return text.encode("utf-8", "replace").decode()
