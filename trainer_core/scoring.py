"""Log-probabilities of answers under a model: what metrics and comparisons are computed from.

Only answer positions reach the output layer, in slices, so memory does not grow with the vocabulary times the length.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_POSITIONS_A_SLICE = 1024


@dataclass(frozen=True)
class Scores:
    """Scores of answers: `logps` (rows,) float64, summed over answer tokens, in nats; `tokens` (rows,) float64."""

    logps: Tensor
    tokens: Tensor

    @property
    def avg_logps(self) -> Tensor:
        """Mean log-probability a token, (rows,)."""
        return self.logps / self.tokens


def adapter_off(model: Any) -> AbstractContextManager[Any]:
    """Inside it a LoRA model answers as its base does; other models are unchanged."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()


@torch.no_grad()
def score(model: Any, prompts: Sequence[list[int]], answers: Sequence[list[int]], batch_size: int = 8) -> Scores:
    """Scores each answer after its prompt. The model's training mode is put back afterwards; no gradients."""
    was_training = model.training
    model.eval()
    try:
        lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
        order = sorted(range(len(answers)), key=lambda i: -lengths[i])
        logps = torch.zeros(len(answers), dtype=torch.float64)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            logps[batch] = _score_batch(model, [prompts[i] for i in batch], [answers[i] for i in batch])
    finally:
        model.train(was_training)
    return Scores(logps, torch.tensor([float(len(answer)) for answer in answers], dtype=torch.float64))


def _score_batch(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.zeros(len(answers), width, dtype=torch.long)
    attention = torch.zeros_like(ids)
    is_answer = torch.zeros(len(answers), width, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        attention[i, :end] = 1
        is_answer[i, len(prompt) : end] = True
    device = next(causal.parameters()).device
    ids, attention, is_answer = ids.to(device), attention.to(device), is_answer.to(device)
    hidden = causal.model(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
    # Position t predicts token t+1: an answer token at t is scored from the hidden state at t-1.
    states, targets = hidden[:, :-1][is_answer[:, 1:]], ids[:, 1:][is_answer[:, 1:]]
    head = causal.get_output_embeddings()
    token_logps = torch.cat(
        [
            torch.log_softmax(head(piece).float(), dim=-1).gather(1, wanted[:, None])[:, 0]
            for piece, wanted in zip(states.split(_POSITIONS_A_SLICE), targets.split(_POSITIONS_A_SLICE), strict=True)
        ]
    )
    owners = is_answer[:, 1:].nonzero()[:, 0]
    sums = torch.zeros(len(answers), dtype=torch.float64, device=device)
    return sums.index_add_(0, owners, token_logps.double()).cpu()
