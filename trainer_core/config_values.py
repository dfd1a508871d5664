"""Values in a model's configuration files that no model can have, and that the libraries find late or never.

transformers checks the types of most fields when it reads them. The values here would fail in the middle of a run or an
answer, with an error that names neither file nor field. Torch-free.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from trainer_core.wording import Message, say


def _is_number(value: Any) -> bool:
    # NaN compares as false.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


_Rule = tuple[re.Pattern[str], Callable[[Any], bool], str]
_MODEL: list[_Rule] = [
    (
        re.compile(r"(\w+_)?(dropout|pdrop)(_prob|_rate|_p)?"),
        lambda value: _is_number(value) and 0 <= value <= 1,
        "share",
    ),
    (re.compile("max_position_embeddings"), lambda value: _is_whole(value) and value >= 1, "whole_from_1"),
    (re.compile("rope_theta"), lambda value: _is_number(value) and value > 0, "positive"),
]
_TOKENIZER: list[_Rule] = [(re.compile("model_max_length"), _is_number, "number")]
_GENERATION: list[_Rule] = [
    (re.compile("num_beams"), lambda value: _is_whole(value) and value >= 1, "whole_from_1"),
    (re.compile("(encoder_)?repetition_penalty"), lambda value: _is_number(value) and value > 0, "positive"),
    (re.compile("no_repeat_ngram_size"), lambda value: _is_whole(value) and value >= 0, "whole_from_0"),
]
_RULES = {"config": _MODEL, "adapter_config": _MODEL, "tokenizer_config": _TOKENIZER, "generation_config": _GENERATION}


def faults(file: str, content: dict[str, Any]) -> Iterator[Message]:
    """What is wrong in a configuration file, at any depth: the field, its value and what it must be.

    Args:
        file: its name. Some are for one version of transformers, such as `config.4.0.0.json`.
    """
    rules = _RULES.get(file.partition(".")[0], [])
    for name, value in _fields(content):
        for pattern, is_right, wanted in rules:
            # null is the library's default; lists and objects hold a value for each layer.
            if not isinstance(value, dict | list | None) and pattern.fullmatch(name) and not is_right(value):
                yield say("model_file_value", name=name, value=repr(value)[:50], wanted=say(f"wanted.{wanted}"))


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield str(name), inner
            yield from _fields(inner)
