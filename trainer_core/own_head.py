"""Logits from hidden states by the model's own code, including whatever it does after its layers.

Models scale their logits (Cohere, Granite), cap them (Gemma) or do something that nobody has thought of yet. So no code here
multiplies by the output layer: the model's own forward pass runs, and its layers return the given states.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from trainer_core.acceleration import causal_of


def layers_of(causal: Any) -> Any:
    """The layers of a causal language model, which its own forward pass calls."""
    return causal.base_model


def own_logits(model: Any, states: Tensor) -> Tensor:
    """The logits that the model's own forward pass computes from the last hidden states.

    Args:
        model: a causal language model, or a LoRA model around one.
        states: (positions, size), after the layers' last norm.

    Returns:
        (positions, vocabulary), on the device of `states`.
    """
    causal = causal_of(model)
    device = causal.get_output_embeddings().weight.device
    ids = torch.zeros(1, len(states), dtype=torch.long, device=device)
    with _given(layers_of(causal), states[None].to(device)):
        # The class's own: TRL, our package and accelerate's autocast replace the instance's.
        return type(causal).forward(causal, input_ids=ids, use_cache=False).logits[0].to(states.device)


class _States(BaseModelOutputWithPast):
    """The output of the layers, with None for any other attribute that a model may read."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _given(layers: Any, states: Tensor) -> Generator[None]:
    """Within this context the layers return these states, (1, positions, size), whatever their input."""
    found = _States(last_hidden_state=states)  # pyright: ignore[reportArgumentType]  # any tensor
    held = layers.__dict__.get("forward")

    def forward(*_: Any, **__: Any) -> _States:
        return found

    layers.forward = forward
    try:
        yield
    finally:
        if held is None:
            del layers.forward
        else:
            layers.forward = held
