"""Anthropic's HH: `chosen` and `rejected` are dialogues in text, with `Human:` and `Assistant:` before each turn.

https://huggingface.co/datasets/Anthropic/hh-rlhf
"""

import re
from typing import Any

from trainer_core.layouts.claims import Claim, Layout, Sample, renamed
from trainer_core.layouts.forms import Messages, Misfit
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_rules import Row
from trainer_core.wording import say

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    if sample.has_any("prompt", "instruction", "question", "input", "conversations", "messages"):
        return None
    if not all(sample.every(name, _is_dialogue) for name in ("chosen", "rejected")):
        return None
    found = renamed(sample, chosen="chosen", rejected="rejected")

    def fields(row: Row) -> Row:
        return {
            name: _turns(name, part) if name in ("chosen", "rejected") else part for name, part in found.fields(row).items()
        }

    return Claim(found.mapping, fields)


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def _turns(field: str, text: Any) -> Messages:
    """The turns of a dialogue, without surrounding white space. Raises `Misfit`."""
    if not isinstance(text, str):
        raise _no_dialogue(field)
    before, *parts = _TURN.split("\n\n" + text.strip())
    turns = [{"role": _ROLES[role], "content": said.strip()} for role, said in zip(parts[::2], parts[1::2], strict=True)]
    if before.strip() or len(turns) < 2:
        raise _no_dialogue(field)
    return turns


def _no_dialogue(field: str) -> Misfit:
    return Misfit(field, say("dialogue", human="Human:", assistant="Assistant:"))


LAYOUT = Layout("hh_text", claims)
