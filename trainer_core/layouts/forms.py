"""Converts the many ways to write prompts, answers and labels to Tafdil's own.

`finish` takes a row with Tafdil's field names and values in any form, and returns it as `row_rules` requires, without
guessing. It never drops meaning: system prompts and histories become turns.
"""

import json
import re
import unicodedata
from math import isnan
from typing import Any

from trainer_core.layouts.words import as_label, plain
from trainer_core.row_rules import LABEL_WORDS, RENDERED, Problem, Row, no_text, shown
from trainer_core.wording import Message, say

Messages = list[dict[str, Any]]

_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
    "observation": "tool",
    "function": "tool",
    "tool_response": "tool",
}
# Fields besides those of a row's kind that change the model's input.
CONTEXT = ("system", "history", "tools")
_NUMBER = re.compile(r"[-+]?\d+([.,٫]\d+)?")
_NO_TOOLS = (None, "", "[]", "{}", [], {})
TAKEN = frozenset({"prompt", "chosen", "rejected", "completion", "label", *CONTEXT})


class Misfit(Exception):
    """A row that does not fit the layout of its file."""

    def __init__(self, field: str, reason: Message) -> None:
        super().__init__(reason)
        self.problem = Problem(field, reason)


def is_absent(value: Any) -> bool:
    """Whether a cell is empty: null, or NaN, which numeric columns use for null."""
    return value is None or (isinstance(value, float) and isnan(value))


def finish(fields: Row) -> Row:
    """A row in Tafdil's format. Raises `Misfit`.

    Args:
        fields: `prompt`, `chosen`, `rejected`, `completion`, `label`, and `system` and `history` (before the prompt).
    """
    found: Row = {}
    if fields.get("tools") not in _NO_TOOLS:
        raise Misfit("tools", say("tools"))
    prompt = as_turns("prompt", fields["prompt"]) if "prompt" in fields else None
    is_pair = "chosen" in fields or "rejected" in fields
    names = ("chosen", "rejected") if is_pair else ("completion",)
    answers = {name: as_turns(name, fields[name]) for name in names if name in fields}
    prompt, answers = _apart(prompt, answers)
    prompt = _with_context(prompt, fields)
    if prompt is not None:
        found["prompt"] = prompt
    found |= answers
    if "label" in fields and not is_pair:
        found["label"] = label_of(fields["label"])
    return found


def label_of(value: Any) -> bool:
    """A label as true or false. Raises `Misfit` with the list of accepted words."""
    label = as_label(value)
    if label is None:
        if isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(plain(value))):
            # In such a file a 1 may be the lowest score instead of a yes, so skipping this row alone would be wrong.
            raise Misfit("label", say("label_score", value=shown(value)))
        raise Misfit("label", say("label", value=shown(value), known=LABEL_WORDS))
    return label


def as_turns(field: str, value: Any) -> Any:
    """Messages or text in Tafdil's format. Anything else is returned unchanged, for the row rules. Raises `Misfit`."""
    if isinstance(value, dict):
        if _is_message(value):
            return [_message(field, value)]
        return [_message(field, each) for each in value["messages"]] if _is_messages(value.get("messages")) else value
    if not isinstance(value, list) or not value:
        return value
    if all(isinstance(each, dict) and "type" in each and "role" not in each and "from" not in each for each in value):
        return _joined(field, value)
    return [_message(field, each) if isinstance(each, dict) else each for each in value]


def parsed(text: str) -> Any:
    """Messages from JSON text in a table cell, or an empty list; None if the text is anything else."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_turns = isinstance(value, list) and bool(value) and all(map(_is_turn, value))
    return value if value == [] or _is_messages(value) or _is_message(value) or is_turns else None


def _is_turn(value: Any) -> bool:
    """Whether a value is a question and its answer."""
    return isinstance(value, list) and len(value) == 2 and all(part is None or isinstance(part, str) for part in value)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_message(each) for each in value)


def _message(field: str, message: dict[str, Any]) -> dict[str, Any]:
    found = {name: part for name, part in message.items() if part is not None or name == "content"}
    if "from" in found and "role" not in found:
        found = {"role": found.pop("from"), "content": found.pop("value", None), **found}
    role = found.get("role")
    if isinstance(role, str):
        found["role"] = _ROLES.get(role.strip().casefold(), role.strip().casefold())
    content = found.get("content")
    if isinstance(content, list):
        found["content"] = _joined(field, content)
    return found


def _joined(field: str, parts: list[Any]) -> str:
    """The text of content parts. Raises `Misfit` for a part that is not text."""
    texts: list[str] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if kind not in (None, "text", "input_text", "output_text") or not isinstance(text, str):
            raise Misfit(field, say("part", part=shown(kind or part)))
        texts.append(text)
    return "".join(texts)


def _apart(prompt: Any, answers: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Prompt and answers. If answers are whole conversations, their common beginning is the prompt or its continuation."""
    whole = [name for name, answer in answers.items() if isinstance(answer, list) and len(answer) > 1]
    if not whole:
        return prompt, answers
    head: Messages = answers[whole[0]][:-1]
    for name in whole:
        last = answers[name][-1]
        if not (isinstance(last, dict) and last.get("role") == "assistant"):
            raise Misfit(name, say("no_last_answer"))
        if not _same(answers[name][:-1], head):
            raise Misfit(name, say("other_head", other=whole[0]))
    return _merged(prompt, head, whole[0]), {
        name: answer[-1:] if name in whole else answer for name, answer in answers.items()
    }


def _merged(prompt: Any, head: Messages, name: str) -> Any:
    """The prompt of a row whose answers repeat it."""
    if isinstance(prompt, str):
        texts = [_key(message) for message in head]
        is_in_head = any(_squeezed(prompt) == text[1] for text in texts) or _squeezed(prompt) in _squeezed(
            "\n".join(text[1] for text in texts)
        )
    elif isinstance(prompt, list):
        if len(prompt) > len(head) and _same(prompt[len(prompt) - len(head) :], head):
            return prompt
        is_in_head = _same(head[: len(prompt)], prompt) or _same(head[len(head) - len(prompt) :], prompt)
    else:
        is_in_head = prompt is None
    if not is_in_head:
        raise Misfit("prompt", say("other_prompt", other=name))
    return head


def _with_context(prompt: Any, fields: Row) -> Any:
    """The prompt, preceded by the system prompt and earlier turns from their own fields."""
    system, history = fields.get("system"), _history(fields.get("history"))
    if isinstance(system, list | dict):
        system = _text(as_turns("system", system))
    if system is not None and not isinstance(system, str):
        raise Misfit("system", no_text(system))
    is_blank = not prompt or (isinstance(prompt, str) and not prompt.strip())
    if is_blank or not (history or (system and system.strip())):
        return prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(turns, list):
        return prompt
    own, rest = _system_apart(turns)
    before, history = _system_apart(history)
    if own and before and not _same(own, before):
        raise Misfit("history", say("other_system"))
    own = own or before
    if system and system.strip():
        if own and _squeezed(str(own[0].get("content"))) != _squeezed(system):
            raise Misfit("system", say("other_system"))
        own = own or [{"role": "system", "content": system}]
    return [*own, *history, *rest]


def _system_apart(turns: list[Any]) -> tuple[list[Any], list[Any]]:
    """The system message at the beginning of turns, if there is one, and the rest."""
    count = int(bool(turns) and isinstance(turns[0], dict) and turns[0].get("role") == "system")
    return turns[:count], turns[count:]


def _history(value: Any) -> Messages:
    """Earlier turns, from messages or from pairs of question and answer. Raises `Misfit`."""
    if is_absent(value) or value in ("", "[]", [], {}):
        return []
    if _is_messages(value):
        return as_turns("history", value)
    turns: Messages = []
    is_pairs = isinstance(value, list) and all(isinstance(each, list | tuple) and len(each) == 2 for each in value)
    if not is_pairs:
        raise Misfit("history", say("history"))
    for pair in value:
        for role, text in zip(("user", "assistant"), pair, strict=True):
            if text is not None and not isinstance(text, str):
                raise Misfit("history", say("history"))
            turns += [{"role": role, "content": text}] if text else []
    return turns


def _text(turns: Any) -> Any:
    """The text of messages; anything else unchanged."""
    return "\n".join(str(each.get("content")) for each in turns) if _is_messages(turns) else turns


def _same(left: Messages, right: Messages) -> bool:
    return len(left) == len(right) and all(_key(a) == _key(b) for a, b in zip(left, right, strict=True))


def _key(message: Any) -> tuple[Any, str, list[Any]]:
    if not isinstance(message, dict):
        return None, str(message), []
    return message.get("role"), _squeezed(str(message.get("content"))), [message.get(name) for name in RENDERED]


def _squeezed(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()
