"""What a preference row must be: its kinds, fields and messages. Pure functions over one parsed value.

Text is kept as it is given; two texts are compared in Unicode's composed form (NFC), in which a shadda typed before its
vowel equals one typed after it.
"""

import json
import unicodedata
from collections.abc import Iterator
from typing import Any, Literal

Kind = Literal["kto", "pairs"]
Row = dict[str, Any]

FIELDS: dict[Kind, tuple[str, ...]] = {
    "kto": ("prompt", "completion", "label"),
    "pairs": ("prompt", "chosen", "rejected"),
}
_ROLES = ("system", "user", "assistant")
# Fields of a message that templates render besides its role and content.
_RENDERED = ("name", "reasoning", "reasoning_content", "thinking", "tool_call_id", "tool_calls")
# The shape of the hosted vendors' DPO files, and where its parts go.
_HOSTED = {"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"}


def comparable(value: Any) -> str:
    """A text, or a list of messages, in the form in which two of them are compared."""
    if not isinstance(value, str):
        value = json.dumps([_parts(message) for message in value], ensure_ascii=False, default=str)
    return unicodedata.normalize("NFC", value)


def text_of(value: Any) -> str:
    """A text, or a list of messages as lines without their roles."""
    return value if isinstance(value, str) else "\n".join(str(message.get("content") or "") for message in value)


def _parts(message: dict[str, Any]) -> list[Any]:
    """A message's role and content, and the other fields that templates render."""
    more = {name: message[name] for name in _RENDERED if message.get(name) is not None}
    return [message.get("role"), message.get("content"), *([more] if more else [])]


def normal_form(value: Any) -> Any:
    """A row of the hosted vendors' shape as a pair; any other value as it is."""
    if not _is_hosted(value):
        return value
    moved = {ours: value[theirs] for ours, theirs in _HOSTED.items() if theirs in value}
    if isinstance(moved.get("prompt"), dict):
        moved["prompt"] = moved["prompt"].get("messages")
    return {name: field for name, field in value.items() if name not in _HOSTED.values()} | moved


def kind_of(row: Row) -> Kind | None:
    """The kind that a row's fields tell, complete or not."""
    if "chosen" in row or "rejected" in row:
        return "pairs"
    return "kto" if "completion" in row or "label" in row else None


def problems(value: Any, expected: Kind | None) -> Iterator[tuple[str, str]]:
    """Every (field, reason) that is wrong with a row as it was given; fields have the names that the row uses."""
    if not isinstance(value, dict):
        yield "", "a row must be a JSON object"
        return
    if _is_hosted(value):
        prompt = value.get("input")
        if "input" in value and not (isinstance(prompt, dict) and "messages" in prompt):
            yield "input", "must be an object with `messages`"
            return
        if prompt and prompt.get("tools"):
            yield "input", "has `tools`, which preference training does not support"
    names = _HOSTED if _is_hosted(value) else {}
    for name, reason in _row_problems(normal_form(value), expected):
        yield names.get(name, name), reason


def _is_hosted(value: Any) -> bool:
    return isinstance(value, dict) and ("preferred_output" in value or "non_preferred_output" in value)


def _row_problems(row: Row, expected: Kind | None) -> Iterator[tuple[str, str]]:
    kind = kind_of(row)
    if kind is None:
        yield "", "a row needs prompt, completion and label, or prompt, chosen and rejected"
        return
    if expected and kind != expected:
        yield "", f"this is a {kind} row, the rows before it are {expected} rows"
        return
    wrong = False
    for name in FIELDS[kind]:
        reason = _field_problem(name, row)
        if reason:
            wrong = True
            yield name, reason
    if kind == "pairs" and not wrong and comparable(row["chosen"]) == comparable(row["rejected"]):
        yield "rejected", "is the same as chosen"


def _field_problem(name: str, row: Row) -> str | None:
    if name not in row:
        return "is missing"
    value = row[name]
    if name == "label":
        shown = json.dumps(value, ensure_ascii=False, default=str)[:40]
        return None if isinstance(value, bool) else f"must be true or false, not {shown}"
    if isinstance(value, str):
        return _text_problem(value) or (None if value.strip() else "is empty")
    if not isinstance(value, list):
        return f"must be text or a list of messages, not {type(value).__name__}"
    return _message_problem(value) or (_prompt_problem(value) if name == "prompt" else _answer_problem(value))


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8: JSON may hold half of a surrogate pair, an emoji that was cut in two."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_problem(value: str) -> str | None:
    return None if is_text(value) else "holds half of a surrogate pair: a character that was cut in two"


def _message_problem(messages: list[Any]) -> str | None:
    if not messages:
        return "has no messages"
    for message in messages:
        if not isinstance(message, dict):
            return "each message must be an object with `role` and `content`"
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            return "each message needs `role` and `content`, both text"
        if message.get("role") not in _ROLES:
            return f"a message's role must be one of {', '.join(_ROLES)}"
        if reason := _text_problem(content or ""):
            return reason
    return None


def _prompt_problem(messages: list[Any]) -> str | None:
    if messages[-1]["role"] == "assistant":
        return "ends with an assistant's message; the last turn belongs to the answer"
    return None if any((message.get("content") or "").strip() for message in messages) else "is empty"


def _answer_problem(messages: list[Any]) -> str | None:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        return "must be one assistant's message; earlier turns belong to the prompt"
    return None if (messages[0].get("content") or "").strip() or messages[0].get("tool_calls") else "is empty"
