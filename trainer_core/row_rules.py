"""What a preference row must be: its kinds, fields and messages. Pure functions over one parsed value.

Text is kept as it is given; two texts are compared in Unicode's composed form (NFC), in which a shadda typed before its
vowel equals one typed after it.
"""

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from trainer_core.wording import Message, say

Kind = Literal["kto", "pairs"]
LABELLED: Kind = "kto"
PAIRS: Kind = "pairs"
Row = dict[str, Any]

FIELDS: dict[Kind, tuple[str, ...]] = {
    LABELLED: ("prompt", "completion", "label"),
    PAIRS: ("prompt", "chosen", "rejected"),
}
ROLES = ("system", "user", "assistant", "tool")
RENDERED = ("name", "reasoning", "reasoning_content", "thinking", "tool_call_id", "tool_calls")
"""Fields of a message that templates render besides its role and content."""
LABEL_WORDS = "1/0, yes/no, good/bad, desirable/undesirable, accepted/rejected, 👍/👎, نعم/لا, صح/خطأ, جيد/سيئ, مقبول/مرفوض"
"""Words for true and false, for messages; `layouts.words` knows more."""
# The service cannot serialize deeper rows.
_MOST_DEPTH = 190


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row: the field, and a reason that continues its name."""

    field: str
    reason: Message


def comparable(value: Any) -> str:
    """A text, or a list of messages, in the form in which two of them are compared."""
    if not isinstance(value, str):
        value = json.dumps([_parts(message) for message in value], ensure_ascii=False, default=str)
    return unicodedata.normalize("NFC", value)


def text_of(value: Any) -> str:
    """A text, or a list of messages as lines without their roles."""
    return value if isinstance(value, str) else "\n".join(str(message.get("content") or "") for message in value)


def turns_of(value: Any, role: str) -> list[dict[str, Any]]:
    """A prompt or an answer as chat turns: text is one turn with the role `role`."""
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


def _parts(message: dict[str, Any]) -> list[Any]:
    """A message's role and content, and the other fields that templates render."""
    more = {name: message[name] for name in RENDERED if message.get(name) is not None}
    return [message.get("role"), message.get("content"), *([more] if more else [])]


def kind_of(row: Row) -> Kind | None:
    """A row's kind, from its fields; they need not be complete."""
    if "chosen" in row or "rejected" in row:
        return PAIRS
    return LABELLED if "completion" in row or "label" in row else None


def problems(value: Any, expected: Kind | None) -> Iterator[Problem]:
    """Everything that is wrong with a row in Tafdil's own format.

    Args:
        expected: the kind of the rows before it.
    """
    if not isinstance(value, dict):
        yield Problem("", say("not_an_object"))
        return
    kind = kind_of(value)
    if kind is None:
        yield Problem("", say("no_fields"))
        return
    if expected and kind != expected:
        words = {"row": say(f"kind.{kind}"), "before": say(f"kind.{expected}")}
        yield Problem("", say("other_kind", kind=kind, expected=expected, **words))
        return
    wrong = False
    for name in FIELDS[kind]:
        found = _field_problem(name, value)
        if found:
            wrong = True
            yield replace(found, field=name)
    if wrong:
        return
    for name, other in value.items():
        is_checked = isinstance(other, str) and name in FIELDS[kind]
        if not is_checked and (found := _unwritable(name, 0) or _unwritable(other, 1)):
            yield replace(found, field=name.encode("utf-8", "backslashreplace").decode()[:80])
            return
    if kind == "pairs" and comparable(value["chosen"]) == comparable(value["rejected"]):
        yield Problem("rejected", say("same_answers"))


def shown(value: Any) -> str:
    """A value, shortened for a message."""
    if isinstance(value, dict | list):
        return type_of(value)
    return json.dumps(value, ensure_ascii=False, default=str)[:40].encode("utf-8", "backslashreplace").decode()


def type_of(value: Any) -> Message:
    """What a value is in JSON."""
    match value:
        case dict():
            return say("type.object")
        case list():
            return say("type.list")
        case bool():
            return say("type.boolean")
        case int() | float():
            return say("type.number")
        case _:
            return say("type.text")


def no_text(value: Any) -> Message:
    """The sentence about a value that should be text or messages."""
    return say("no_text", type=type(value).__name__, what=type_of(value))


def _field_problem(name: str, row: Row) -> Problem | None:
    """What is wrong with a field. As in all functions below, the caller fills in the field's name."""
    value = row.get(name)
    if value is None:
        return Problem("", say("missing"))
    if name == "label":
        if isinstance(value, bool):
            return None
        return Problem("", say("label", value=shown(value), known=LABEL_WORDS))
    if isinstance(value, str):
        return _text_problem(value) or (None if value.strip() else Problem("", say("empty")))
    if not isinstance(value, list):
        return Problem("", no_text(value))
    return _message_problem(value) or (_prompt_problem(value) if name == "prompt" else _answer_problem(value))


def is_text(value: str) -> bool:
    """Whether a string can be encoded as UTF-8. JSON may contain unpaired surrogates, such as half an emoji."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_problem(value: str) -> Problem | None:
    if is_text(value):
        return None
    return Problem("", say("half_character"))


def _unwritable(value: Any, depth: int) -> Problem | None:
    """Why a value anywhere in a row cannot be written as JSON."""
    if isinstance(value, str):
        return None if value.isascii() else _text_problem(value)
    if not isinstance(value, dict | list):
        return None
    if depth > _MOST_DEPTH:
        return Problem("", say("too_deep", most=_MOST_DEPTH))
    for each in [*value, *value.values()] if isinstance(value, dict) else value:
        if found := _unwritable(each, depth + 1):
            return found
    return None


def _message_problem(messages: list[Any]) -> Problem | None:
    if not messages:
        return Problem("", say("no_messages"))
    for message in messages:
        if not isinstance(message, dict):
            return Problem("", say("no_message"))
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            return Problem("", say("no_content"))
        if message.get("role") not in ROLES:
            return Problem("", say("role", role=shown(message.get("role")), roles=", ".join(ROLES)))
        if reason := _text_problem(content or ""):
            return reason
    return None


def _prompt_problem(messages: list[Any]) -> Problem | None:
    if messages[-1]["role"] == "assistant":
        return Problem("", say("prompt_ends_with_answer"))
    return None if any((message.get("content") or "").strip() for message in messages) else Problem("", say("empty"))


def _answer_problem(messages: list[Any]) -> Problem | None:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        return Problem("", say("no_answer"))
    is_answer = (messages[0].get("content") or "").strip() or messages[0].get("tool_calls")
    return None if is_answer else Problem("", say("empty"))
