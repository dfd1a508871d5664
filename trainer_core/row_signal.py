"""Checks on tokenised rows: which have no training signal and are dropped, and which look like mistakes.

Token ids decide whether answers are equal, empty or cut away, since the model trains on those. The text is searched only for
what ids do not show, such as invisible characters or a template applied twice.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer_core.row_names import AS_NUMBERED, RowNames
from trainer_core.row_rules import Row, comparable, text_of
from trainer_core.tokens import Messages, Renderer
from trainer_core.wording import Message, say

# Rows that are dropped, because there is nothing to learn from them.
DROPPED = ("answers_equal", "answer_empty", "prompt_lost")
# What is reported about rows that are still trained on.
NOTED = (
    "contradictory_rows",
    "invisible_text",
    "invisible_difference",
    "special_tokens_in_text",
    "prompt_already_rendered",
    "answer_is_messages",
)
_SHOWN_ROWS = 10
# How text rendered by well-known templates begins.
_TURNS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|START_OF_TURN_TOKEN|>", "[INST]", "<|assistant|>")
# Direction controls, joiners, variation selectors, fillers, tags; and tatweel, which only stretches a word.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u0640\u061c\u115f\u1160\u180b-\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e0fff]"
)


@dataclass
class Findings:
    """What was found in the rows: their numbers, by the codes of `DROPPED` and `NOTED`."""

    rows: dict[str, list[int]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    """Control tokens in the text, each with the number of rows that contain it."""

    def add(self, code: str, number: int) -> None:
        """Notes a row once: KTO makes two rows of each pair, both with the pair's number."""
        numbers = self.rows.setdefault(code, [])
        if not numbers or numbers[-1] != number:
            numbers.append(number)

    @property
    def dropped(self) -> int:
        return sum(len(numbers) for code, numbers in self.rows.items() if code in DROPPED)

    def as_list(self, shown_rows: int = 20, names: RowNames = AS_NUMBERED) -> list[dict[str, Any]]:
        """By code: how many rows, the first of them, and whether they were dropped."""
        return [
            {
                "code": code,
                "rows": len(numbers),
                "first_rows": [names.short(number) for number in numbers[:shown_rows]],
                "dropped": code in DROPPED,
            }
            for code, numbers in self.rows.items()
        ]

    def messages(self, part: Message, mode: str, names: RowNames = AS_NUMBERED) -> list[tuple[str, Message]]:
        """(code, sentence) for each finding.

        Args:
            part: which rows these are.
            mode: `special_tokens_in_text` of the run.
            names: the names of rows in messages.
        """
        return [(code, self._message(code, numbers, part, mode, names)) for code, numbers in self.rows.items()]

    def reasons(self) -> list[Message]:
        """Why rows were dropped, with how many."""
        return [
            say("rows_because", rows=say("count.rows", n=len(self.rows[code])), reason=say(f"dropped.{code}"))
            for code in DROPPED
            if code in self.rows
        ]

    def _message(self, code: str, numbers: list[int], part: Message, mode: str, names: RowNames) -> Message:
        shown = [str(names.short(number)) for number in numbers[:_SHOWN_ROWS]]
        values: dict[str, Any] = {
            "part": part,
            "count": say("count.rows", n=len(numbers)),
            "rows": shown + (["…"] if len(numbers) > _SHOWN_ROWS else []),
        }
        if code == "special_tokens_in_text":
            code = "special_tokens_in_text_control" if mode == "allow" else "special_tokens_in_text_plain"
            values |= {"tokens": list(self.tokens)[:3], "mode": mode}
        return say(code, **values)


def loss_of_signal(
    prompt: Sequence[int], answers: Sequence[Sequence[int]], renderer: Renderer, *, is_cut: bool
) -> str | None:
    """Why a row has no training signal, as a code of `DROPPED`; None if it has one.

    Args:
        prompt, answers: token ids after any cut.
        is_cut: whether the prompt lost its beginning.
    """
    if not prompt or (is_cut and len(prompt) <= len(renderer.start_ids) + renderer.after_prompt_tokens):
        return "prompt_lost"
    if len(answers) > 1 and list(answers[0]) == list(answers[1]):
        return "answers_equal"
    ends = len(renderer.end_ids)
    if any(all(token in renderer.control_ids for token in answer[:-ends]) for answer in answers):
        return "answer_empty"
    return None


def note_text(row: Row, names: Sequence[str], renderer: Renderer, findings: Findings) -> None:
    """Notes what a row's text shows: control tokens, a template applied already, messages as JSON, invisible characters."""
    number = row["row"]
    answers = [row[name] for name in names]
    controls = renderer.control_tokens(row["prompt"], *answers)
    if controls:
        findings.add("special_tokens_in_text", number)
        for token in controls:
            findings.tokens[token] = findings.tokens.get(token, 0) + 1
    prompt_text = text_of(row["prompt"])
    opening = renderer.template.shape.opening.strip() if renderer.template else ""
    if prompt_text.lstrip().startswith(_TURNS) or (opening and opening in prompt_text):
        findings.add("prompt_already_rendered", number)
    if any(isinstance(answer, str) and _is_messages(answer) for answer in answers):
        findings.add("answer_is_messages", number)
    texts = [prompt_text, *(text_of(answer) for answer in answers)]
    seen = [_seen(text) for text in texts]
    if not all(text.strip("\u200c\u200d") for text in seen) and not any(_has_calls(answer) for answer in answers):
        findings.add("invisible_text", number)
    elif len(answers) > 1 and seen[1] == seen[2] and _whole(answers[0]) == _whole(answers[1]):
        findings.add("invisible_difference", number)


class Contradictions:
    """Finds rows that say the opposite of each other, by their token ids."""

    def __init__(self) -> None:
        self._seen: dict[int, list[int]] = {}
        self._found: set[int] = set()
        """Keys of `_seen` that have an opposite."""

    def look(self, row: Row) -> None:
        """Takes the next tokenised row."""
        prompt = tuple(row["prompt_ids"])
        if "chosen_ids" in row:
            chosen, rejected = tuple(row["chosen_ids"]), tuple(row["rejected_ids"])
            key, opposite = hash((prompt, chosen, rejected)), hash((prompt, rejected, chosen))
        else:
            answer, label = tuple(row["completion_ids"]), bool(row["label"])
            key, opposite = hash((prompt, answer, label)), hash((prompt, answer, not label))
        self._seen.setdefault(key, []).append(row["row"])
        if opposite in self._seen:
            self._found |= {key, opposite}

    def note(self, findings: Findings) -> None:
        """Notes all rows that contradict another."""
        if self._found:
            findings.rows["contradictory_rows"] = sorted({row for key in self._found for row in self._seen[key]})


def _whole(value: str | Messages) -> Any:
    """The parts of an answer other than its text, such as tool calls."""
    return "" if isinstance(value, str) else comparable([{**message, "content": ""} for message in value])


def _has_calls(value: str | Messages) -> bool:
    return not isinstance(value, str) and any(message.get("tool_calls") for message in value)


def _seen(text: str) -> str:
    """A text without invisible characters or surrounding whitespace. Joiners stay: they change how letters look."""
    return _UNSEEN.sub("", unicodedata.normalize("NFC", text)).strip()


def _is_messages(text: str) -> bool:
    if not text.lstrip().startswith(("[", "{")) or '"role"' not in text:
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    listed = value if isinstance(value, list) else [value]
    return bool(listed) and all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in listed)
