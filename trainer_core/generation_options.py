"""The options of an answer: how long it may be, and how its tokens are drawn.

Knows the names and ranges of transformers' `generate`, but no model. Torch-free.
"""

import operator
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer_core import validation
from trainer_core.errors import DataInvalid, Detail, SpecInvalid
from trainer_core.wording import say

# A comparison sets these itself, or they would change the meaning of a row, run code, or load another model.
_NOT_OPTIONS = {
    *("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "labels"),
    *("adapter_names", "num_return_sequences", "max_length", "max_new_tokens", "streamer", "return_dict_in_generate"),
    *("output_logits", "generation_config", "assistant_model", "custom_generate", "trust_remote_code"),
}
# Dividing logits by less would overflow.
_LEAST_TEMPERATURE = 1e-6


class DefaultLength(int):
    """A default for the maximum number of new tokens: equals its number, but is lowered to what fits in the model's context.

    From a caller the same number is a plain `int`, and is refused if it does not fit.
    """


DEFAULT_LENGTH = DefaultLength(512)


class _Options(BaseModel):
    """Options of transformers' `generate`, with the values that are meaningful. It checks all others itself."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    temperature: float | None = Field(None, ge=0, le=1e6)
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    do_sample: bool | None = None
    top_k: int | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    top_h: float | None = Field(None, gt=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    epsilon_cutoff: float | None = Field(None, ge=0, lt=1)
    eta_cutoff: float | None = Field(None, ge=0, lt=1)
    repetition_penalty: float | None = Field(None, gt=0)
    encoder_repetition_penalty: float | None = Field(None, gt=0)
    no_repeat_ngram_size: int | None = Field(None, ge=0)
    num_beams: int | None = Field(None, ge=1)
    length_penalty: float | None = None
    min_length: int | None = Field(None, ge=0)
    min_new_tokens: int | None = Field(None, ge=0)
    max_time: float | None = Field(None, gt=0)


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, without those that are None. Raises `SpecInvalid`, which names the invalid option and the reason."""
    if refused := _NOT_OPTIONS & options.keys():
        names = sorted(refused)
        details = [Detail(name, say("option_refused", name=name)) for name in names]
        raise SpecInvalid(say("options_refused", names=names) if len(names) > 1 else details[0].reason, details)
    # numpy and torch numbers are allowed too.
    plain = {k: v.item() if getattr(v, "ndim", None) == 0 else v for k, v in options.items() if v is not None}
    try:
        _Options.model_validate(plain)
    except ValidationError as error:
        found = validation.details(error.errors(include_url=False))
        raise SpecInvalid(validation.summary(found), found) from error
    if 0 < plain.get("temperature", 0.0) < _LEAST_TEMPERATURE:
        found = {"value": plain["temperature"], "least": _LEAST_TEMPERATURE}
        raise SpecInvalid.at("temperature", say("temperature_too_small", **found))
    if plain.get("do_sample") is False and plain.get("temperature"):
        raise SpecInvalid.at("do_sample", say("temperature_contradicted", temperature=plain["temperature"]))
    return plain


def length_of(max_length: int | None, options: dict[str, Any]) -> int:
    """The maximum number of new tokens requested. Removes `max_new_tokens`, transformers' name for it, from `options`.

    Raises:
        SpecInvalid: both are given.
    """
    other = options.pop("max_new_tokens", None)
    if other is None:
        return DEFAULT_LENGTH if max_length is None else max_length
    if max_length is not None and not isinstance(max_length, DefaultLength):
        raise SpecInvalid.at("max_new_tokens", say("length_twice"))
    return other


def fitting(asked: int, prompt_tokens: int, longest: int | None) -> int:
    """The maximum number of new tokens of an answer.

    Args:
        asked: the requested number; a `DefaultLength` is lowered to what fits.
        prompt_tokens: length of the rendered prompt.
        longest: the model's maximum for prompt and answer together; None if there is no known limit.

    Raises:
        SpecInvalid: `asked` is not a number of tokens.
        DataInvalid: the prompt leaves less room than was requested.
    """
    try:
        count = asked if isinstance(asked, DefaultLength) else _whole(asked)
    except TypeError:
        count = 0
    if count < 1:
        raise SpecInvalid.at("max_length", say("length_not_whole", value=repr(asked)))
    if not longest or prompt_tokens + count <= longest:
        return int(count)
    room = longest - prompt_tokens
    if room < 1:
        raise DataInvalid.at("prompt", say("prompt_fills_model", tokens=prompt_tokens, longest=longest))
    if isinstance(count, DefaultLength):
        return room
    counts = {"tokens": prompt_tokens, "asked": int(count), "longest": longest, "room": room}
    raise DataInvalid.at("max_length", say("length_too_long", **counts))


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)
