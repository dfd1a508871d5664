"""The model's answers to fixed prompts while it trains, and how they drift."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from trainer_core.acceleration import causal_of
from trainer_core.sample_signs import Said, sign_metrics
from trainer_core.tokens import Messages, Renderer

_REPEATED_TOKENS = 4


@dataclass(frozen=True)
class Sample:
    """One greedy answer. `response_ids` includes the end token if the model produced one."""

    prompt: str | Messages
    response: str
    response_ids: list[int]

    def as_dict(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "response": self.response, "tokens": len(self.response_ids)}


@torch.no_grad()
def answer(model: Any, renderer: Renderer, prompts: list[str | Messages], max_new_tokens: int) -> list[Sample]:
    """Greedy answers to prompts, in one batch. Restores the model's training mode; draws no random numbers."""
    tokenizer = renderer.tokenizer
    ids = [renderer.prompt_ids(prompt) for prompt in prompts]
    width = max(map(len, ids))
    inputs = torch.full((len(ids), width), tokenizer.pad_token_id)
    attention = torch.zeros_like(inputs)
    for i, row in enumerate(ids):
        inputs[i, width - len(row) :] = torch.tensor(row)
        attention[i, width - len(row) :] = 1
    was_training = model.training
    model.eval()
    try:
        with _greedy(model):
            output = model.generate(
                input_ids=inputs.to(model.device),
                attention_mask=attention.to(model.device),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=renderer.stop.ids,
            )
    finally:
        model.train(was_training)
    found: list[Sample] = []
    for prompt, row in zip(prompts, output[:, width:].tolist(), strict=True):
        found.append(Sample(prompt, renderer.response(row), renderer.stop.up_to_end(row)))
    return found


@contextmanager
def _greedy(model: Any) -> Generator[None]:
    """Ignores the model's own generation configuration: its beams, penalties or stop strings would not be greedy."""
    held = [(one, one.generation_config) for one in (model, causal_of(model))]
    for one, _ in held:
        one.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for one, config in held:
            one.generation_config = config


def repetition(ids: list[int]) -> float:
    """Share of an answer's runs of four tokens that occurred in it before; 0 for an answer that never repeats itself."""
    runs = Counter(tuple(ids[i : i + _REPEATED_TOKENS]) for i in range(len(ids) - _REPEATED_TOKENS + 1))
    return 1 - len(runs) / runs.total() if runs else 0.0


def said(response: str, tag: str) -> str:
    """The words of an answer, without the tags of its block of thoughts; nothing if it consists of an empty block.

    Args:
        tag: e.g. `think`.
    """
    return response.replace(f"<{tag}>", "").replace(f"</{tag}>", "").strip()


def sample_metrics(samples: list[Sample], tag: str = "think") -> dict[str, float | None]:
    """`sample_tokens`: mean length in tokens; `sample_repetition`: mean of `repetition`; and those of `sign_metrics`.

    Args:
        tag: the template's tag around thoughts, which says nothing about an answer's language.
    """
    return {
        "sample_tokens": sum(len(sample.response_ids) for sample in samples) / len(samples),
        "sample_repetition": sum(repetition(sample.response_ids) for sample in samples) / len(samples),
        **sign_metrics([Said.to(sample.prompt, said(sample.response, tag)) for sample in samples]),
    }
