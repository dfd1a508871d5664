"""The three losses in float64, written from the papers and from nothing else, for the trainers to be checked against.

All log-probabilities are in nats, summed over the answer's tokens. Gradients flow through the policy's alone.
"""

from typing import Any

import torch
from torch import Tensor


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def ipo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    beta: float,
    flipped: float = 0.0,
) -> Tensor:
    """(pairs,) Azar et al. 2023, arXiv:2310.12036, eq. 17, with log-ratios a token; `flipped`: share of swapped labels."""
    h = (chosen - ref_chosen) / chosen_tokens - (rejected - ref_rejected) / rejected_tokens
    kept, swapped = (h - 1 / (2 * beta)) ** 2, (-h - 1 / (2 * beta)) ** 2
    return (1 - flipped) * kept + flipped * swapped


def cpo(
    chosen: Tensor,
    rejected: Tensor,
    chosen_tokens: Tensor,
    beta: float,
    alpha: float,
    flipped: float = 0.0,
    hinge: bool = False,
) -> Tensor:
    """() Xu et al. 2024, arXiv:2401.08417, eq. 3 to 5: mean preference term, plus α × NLL of the chosen answers' tokens."""
    x = beta * (chosen - rejected)
    if hinge:
        prefer = torch.where(x < 1, 1 - x, torch.zeros_like(x))
    else:
        prefer = (1 - flipped) * torch.log(1 + torch.exp(-x)) + flipped * torch.log(1 + torch.exp(x))
    return prefer.sum() / len(x) + alpha * (-chosen.sum() / chosen_tokens.sum())


def kto(
    logps: Tensor,
    ref_logps: Tensor,
    kl_logps: Tensor,
    ref_kl_logps: Tensor,
    desirable: Tensor,
    beta: float,
    lambda_d: float,
    lambda_u: float,
) -> Tensor:
    """(rows,) Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7: λ_y − v(x, y), without the constant λ_y of each label.

    z0 is the mean log-ratio of mismatched answers, at least 0, and no gradient flows through it.
    """
    z0 = torch.clamp((kl_logps - ref_kl_logps).sum() / len(kl_logps), min=0).detach()
    r = logps - ref_logps
    value_d = lambda_d * sigmoid(beta * (r - z0))
    value_u = lambda_u * sigmoid(beta * (z0 - r))
    return torch.where(desirable, lambda_d - value_d, lambda_u - value_u)


def answer_logps(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """() The log-probability of an answer after its prompt: one row, no padding, the model's plain forward."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    logps = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
    return sum((logps[len(prompt) - 1 + i, token] for i, token in enumerate(answer)), torch.zeros((), dtype=torch.float64))


def margins(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    lengths: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(pairs,) β times how much more the chosen answer gained on the reference than the rejected one.

    Args:
        lengths: tokens of the chosen and the rejected answers, where the method averages log-ratios over them.
    """
    gained, lost = chosen - ref_chosen, rejected - ref_rejected
    if lengths:
        gained, lost = gained / lengths[0], lost / lengths[1]
    return beta * (gained - lost)


def margin_accuracy(of_pairs: Tensor) -> float:
    """Share of margins above 0; a margin of 0 counts a half."""
    return sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in of_pairs.tolist()) / len(of_pairs)
