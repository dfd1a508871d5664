"""Log-probabilities of answers under a model, from which metrics and comparisons are computed.

Only answer positions reach the output layer, in slices, so memory does not grow with the vocabulary times the length. The
model's own code computes everything after the layers (`own_head`). The answers to a prompt go through the layers together,
and share the prompt if the model was accelerated for a run.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer_core.acceleration import causal_of, is_accelerated, states_at
from trainer_core.config import Reward
from trainer_core.own_head import layers_of, own_logits
from trainer_core.reference import model_of, side_of

_SLICE_BYTES = 2**26


@dataclass(frozen=True)
class Scores:
    """Scores of answers under a policy and its reference, each (rows,) float64.

    Attributes:
        logps, ref_logps: log-probabilities in nats, summed over answer tokens.
        tokens: number of answer tokens, including the end token.
        kl: KL(policy ‖ reference) in nats over the whole vocabulary, summed over answer positions.

    Values that need a reference are NaN if there was none.
    """

    logps: Tensor
    ref_logps: Tensor
    tokens: Tensor
    kl: Tensor

    def at(self, places: Sequence[int]) -> "Scores":
        """The scores of the rows at these places."""
        chosen = torch.tensor(places, dtype=torch.long)
        return Scores(self.logps[chosen], self.ref_logps[chosen], self.tokens[chosen], self.kl[chosen])

    @property
    def avg_logps(self) -> Tensor:
        """Mean log-probability per token."""
        return self.logps / self.tokens

    @property
    def mean_kl(self) -> float | None:
        """KL divergence per token, over all answers."""
        value = (self.kl.sum() / self.tokens.sum()).item()
        return None if math.isnan(value) else value

    @property
    def ratios(self) -> Tensor:
        """log π(y|x) − log π_ref(y|x)."""
        return self.logps - self.ref_logps

    @property
    def avg_ratios(self) -> Tensor:
        """The same per token."""
        return self.ratios / self.tokens

    def rewards(self, beta: float, kind: Reward) -> Tensor:
        """β times the log-ratio to the reference, `summed` over an answer's tokens or `averaged`."""
        return beta * (self.avg_ratios if kind == "averaged" else self.ratios)


def share_positive(values: Tensor) -> float | None:
    """Share of values, (rows,), that are above 0; a 0 counts a half. None if there are no values."""
    return ((values.sign() + 1) / 2).mean().item() if len(values) else None


@torch.no_grad()
def score(
    policy: Any,
    reference: Any,
    prompts: Sequence[list[int]],
    answers: Mapping[str, Sequence[list[int]]],
    batch_size: int = 8,
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, Scores]:
    """Scores answers after their prompts under both sides, without gradients. Restores the policy's training mode.

    Args:
        reference: None: only values that need no reference.
        answers: by name, one answer to each prompt.
        batch_size: prompts per batch.
        on_batch: called after each batch.
    """
    was_training = policy.training
    policy.eval()
    try:
        longest = [len(prompt) + max(map(len, own)) for prompt, *own in zip(prompts, *answers.values(), strict=True)]
        order = sorted(range(len(prompts)), key=lambda i: -longest[i])
        sums = torch.zeros(3, len(answers), len(prompts), dtype=torch.float64)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            own = [of_name[i] for of_name in answers.values() for i in chosen]
            batch = _Batch([prompts[i] for i in chosen] * len(answers), own, policy)
            sums[:, :, chosen] = batch.score(policy, reference).reshape(3, len(answers), len(chosen))
            on_batch()
    finally:
        policy.train(was_training)
    tokens = torch.tensor([[float(len(answer)) for answer in of_name] for of_name in answers.values()], dtype=torch.float64)
    return {
        name: Scores(logps, ref_logps, count, kl)
        for name, logps, ref_logps, kl, count in zip(answers, *sums, tokens, strict=True)
    }


class _Batch:
    """Prompts with their answers, padded on the right."""

    def __init__(self, prompts: list[list[int]], answers: list[list[int]], model: Any) -> None:
        width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
        self.ids = torch.zeros(len(answers), width, dtype=torch.long)
        self.attention = torch.zeros_like(self.ids)
        is_answer = torch.zeros(len(answers), width, dtype=torch.bool)
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            end = len(prompt) + len(answer)
            self.ids[i, :end] = torch.tensor(prompt + answer)
            self.attention[i, :end] = 1
            is_answer[i, len(prompt) : end] = True
        self.device = next(model.parameters()).device
        self._vocabulary = model.config.get_text_config().vocab_size
        self.ids, self.attention = self.ids.to(self.device), self.attention.to(self.device)
        # Position t predicts token t+1: an answer token at t is scored from the hidden state at t-1.
        self.predicts = is_answer[:, 1:].to(self.device)
        self.targets = self.ids[:, 1:][self.predicts]

    def score(self, policy: Any, reference: Any) -> Tensor:
        """(3, rows) float64: the policy's and the reference's summed log-probabilities, and the summed KL."""
        if reference is None:
            states = self._states(policy, is_packed=is_accelerated(policy))
            own = [self._logps(policy, *slices) for slices in self._slices(states)]
            return self._summed(torch.stack([logps := torch.cat(own), logps * math.nan, logps * math.nan]))
        model = model_of(reference)
        # The same way for both: otherwise equal weights would differ by rounding.
        is_packed = is_accelerated(policy) and is_accelerated(model)
        states = self._states(policy, is_packed=is_packed)
        with side_of(reference):
            ref_states = self._states(model, is_packed=is_packed)
        pieces = [self._score_slice(policy, model, *slices) for slices in self._slices(states, ref_states)]
        return self._summed(torch.cat(pieces, dim=1))

    def _slices(self, *states: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Slices of positions whose logits stay within the limit of bytes."""
        size = max(1, _SLICE_BYTES // (4 * self._vocabulary))
        return zip(*(tensor.split(size) for tensor in (*states, self.targets)), strict=True)

    def _summed(self, values: Tensor) -> Tensor:
        """(3, answer tokens) → (3, rows)."""
        owners = self.predicts.nonzero()[:, 0]
        sums = torch.zeros(3, self.ids.shape[0], dtype=torch.float64, device=self.device)
        return sums.index_add_(1, owners, values).cpu()

    def _logps(self, policy: Any, states: Tensor, targets: Tensor) -> Tensor:
        log_p = torch.log_softmax(own_logits(policy, states).float(), dim=-1)
        return log_p.gather(1, targets[:, None])[:, 0].double()

    def _states(self, model: Any, *, is_packed: bool) -> Tensor:
        """Hidden states at the positions that predict answer tokens, (answer tokens, width).

        Args:
            is_packed: compute prompts once; requires an accelerated model.
        """
        causal = causal_of(model)
        device = next(causal.parameters()).device
        ids, attention, predicts = (tensor.to(device) for tensor in (self.ids, self.attention, self.predicts))
        if is_packed:
            return states_at(model, ids, attention, predicts).to(self.device)
        hidden = layers_of(causal)(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
        return hidden[:, :-1][predicts].to(self.device)

    def _score_slice(self, policy: Any, model: Any, states: Tensor, ref_states: Tensor, targets: Tensor) -> Tensor:
        log_p = torch.log_softmax(own_logits(policy, states).float(), dim=-1)
        log_q = torch.log_softmax(own_logits(model, ref_states).float(), dim=-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        return torch.stack([log.gather(1, targets[:, None])[:, 0] for log in (log_p, log_q)] + [kl]).double()
