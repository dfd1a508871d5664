"""Where a model's turn ends: the one set of tokens at which every generation stops.

Three places name an end token, and they can disagree: `Qwen/Qwen2.5-7B` has the `eos_token` `<|endoftext|>` and a template
that ends turns with `<|im_end|>`, and the generation configurations of chat models hold lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, GenerationConfig

from trainer_core.loading import loading
from trainer_core.wording import say


@dataclass(frozen=True)
class StopTokens:
    """Token ids that end a turn, by where they are named.

    Attributes:
        template: what the chat template writes after an answer; empty without a template, or if that is plain text.
        tokenizer: the `eos_token`.
        generation_config: `eos_token_id` of the model's generation configuration.
    """

    template: tuple[int, ...] = ()
    tokenizer: tuple[int, ...] = ()
    generation_config: tuple[int, ...] = ()

    @property
    def ids(self) -> list[int]:
        """All ids, each once."""
        return list(dict.fromkeys((*self.template, *self.tokenizer, *self.generation_config)))

    @property
    def is_model_unaware(self) -> bool:
        """Whether neither the tokenizer nor the generation configuration names the template's end: often a base model."""
        return bool(self.template) and not set(self.template) & {*self.tokenizer, *self.generation_config}

    def up_to_end(self, ids: Sequence[int]) -> list[int]:
        """Ids up to and including the first stop token."""
        ends = set(self.ids)
        return list(ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))])

    def without_end(self, ids: Sequence[int]) -> list[int]:
        """Ids before the first stop token."""
        found = self.up_to_end(ids)
        return found[:-1] if found and found[-1] in self.ids else found

    def as_dicts(self, tokenizer: Any) -> list[dict[str, Any]]:
        """Each token's `id`, `token` (its text) and `named_by`, for display."""
        by_name = vars(self)
        return [
            {"id": token, "token": tokenizer.decode([token]), "named_by": [n for n, ids in by_name.items() if token in ids]}
            for token in self.ids
        ]


def generation_end(path: str) -> tuple[int, ...]:
    """The `eos_token_id` of a model's generation configuration, or else of its configuration: a number or a list.

    Args:
        path: a model's directory or hub name.

    Raises:
        ModelNotFound, ModelRefused: also if it is neither.
    """
    with loading(path):
        try:
            named: Any = GenerationConfig.from_pretrained(path).eos_token_id
        except OSError:
            named = getattr(AutoConfig.from_pretrained(path, trust_remote_code=False), "eos_token_id", None)
        listed = named if isinstance(named, list) else [] if named is None else [named]
        if not all(type(token) is int for token in listed):
            raise ValueError(say("end_token_unreadable", value=repr(named)))
        return tuple(listed)
