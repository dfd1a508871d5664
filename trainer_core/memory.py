"""How much memory a run's activations take, from the model's shape, and whether to recompute them instead.

Torch-free, so that an estimate needs no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from trainer_core.wording import say

# Share of the free memory that activations may take: estimates err, and allocators waste some.
_USABLE = 0.8


@dataclass(frozen=True)
class Shape:
    """The parts of a decoder's configuration that decide its memory. Sizes are in values, not bytes."""

    hidden: int
    intermediate: int
    layers: int
    attention: int
    """Heads times their size."""
    keys: int
    """Key heads times their size."""
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """From the fields of a `config.json`. Raises `KeyError` if one is missing."""
        heads = config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // heads
        return cls(
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            attention=heads * size,
            keys=(config.get("num_key_value_heads") or heads) * size,
            vocabulary=config["vocab_size"],
        )


def activation_bytes(shape: Shape, tokens: int, value_bytes: int, *, has_adapters: bool) -> int:
    """Bytes that a forward pass over `tokens` tokens keeps for the backward pass, without gradient checkpointing.

    The estimate is 0.75 to 1.3 times what autograd keeps in measurements (`tests/integration/test_memory.py`).

    Per layer: the input of both norms and their float32 intermediates; queries, keys and values before and after rotation,
    with keys and values repeated for the query heads; the attention's result; and four tensors of the feed-forward part.
    With weights of less than float32, LoRA adapters convert the input of every linear layer.
    """
    in_float32 = 4 * 2 * shape.hidden
    if has_adapters and value_bytes < 4:
        in_float32 += 4 * (5 * shape.hidden + shape.attention + shape.intermediate)
    of_layer = 4 * shape.hidden + 5 * shape.attention + 4 * shape.keys + 4 * shape.intermediate
    return shape.layers * tokens * (of_layer * value_bytes + in_float32)


@dataclass(frozen=True)
class Decision:
    """Whether activations are recomputed in the backward pass (gradient checkpointing), and why."""

    checkpointing: bool
    because: str

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def decide(needed: int, free: int) -> Decision:
    """Keeps activations if `needed` bytes fit well into the `free` ones."""
    fits = needed <= _USABLE * free
    sizes = {"needed": _gib(needed), "free": _gib(free)}
    return Decision(not fits, say("activations_kept" if fits else "activations_recomputed", **sizes))


def _gib(size: int) -> float:
    return round(size / 2**30, 1)
