"""Log-probabilities of given tokens from hidden states, with a frozen output layer.

Logits are computed one slice of positions at a time. While a slice's logits exist, so is the gradient of the log-probability
with respect to the hidden state: one vector per position, later multiplied by the incoming gradient. The backward pass is
therefore a multiplication, and needs neither the logits nor the output layer again.

    log p(y) = z_y − log Σ exp z        ∂ log p(y) / ∂h = W_y − Σ_v p_v W_v        Σ_v p_v z_v = z_y − h · ∂ log p(y) / ∂h
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

_SLICE_BYTES = {"cpu": 2**27}
_SLICE_BYTES_OF_A_GPU = 2**29
_TRL_VOCABULARY_SLICE = 32_768


@dataclass
class TokenScores:
    """For each given token, (tokens,) float32: its log-probability and, on request, what TRL's metrics need.

    `entropy` (nats) and `mean_logits` (over the vocabulary) describe its whole distribution; `is_top1` says whether no token
    was likelier.
    """

    log_probs: Tensor
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None


def score_tokens(hidden: Tensor, head: Any, targets: Tensor, *, with_metrics: bool) -> TokenScores:
    """Scores target tokens.

    Args:
        hidden: (tokens, size), the states from which the targets are predicted.
        head: the output layer, an `nn.Linear`.
        targets: (tokens,) ids.
    """
    weight, bias = head.weight, head.bias
    if weight.requires_grad and torch.is_grad_enabled():
        outputs = ("log_probs", "entropy", "mean_logits", "is_top1")
        found = ChunkedLogProbFunction.apply(
            hidden, weight, bias, targets, 1.0, _TRL_VOCABULARY_SLICE, None, 1.0, outputs if with_metrics else outputs[:1]
        )
        return TokenScores(found[0], found[1], found[3], found[4])
    found = _FrozenHead.apply(hidden, weight.detach(), bias if bias is None else bias.detach(), targets, with_metrics)
    return TokenScores(*found)


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  # as autograd passes them
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, with_metrics: bool
    ) -> tuple[Tensor | None, ...]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        weight = weight.to(dtype)
        needs_gradient = ctx.needs_input_grad[0]
        size = max(16, _SLICE_BYTES.get(device, _SLICE_BYTES_OF_A_GPU) // (4 * weight.shape[0]))
        slices = [
            _score_slice(states.to(dtype), weight, bias, wanted, needs_gradient=needs_gradient, with_metrics=with_metrics)
            for states, wanted in zip(hidden.detach().split(size), targets.split(size), strict=True)
        ]
        log_probs, entropy, mean_logits, is_top1, gradient = (
            None if column[0] is None else torch.cat(column) for column in zip(*slices, strict=True)
        )
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(*(x for x in (entropy, mean_logits, is_top1) if x is not None))
        return log_probs, entropy, mean_logits, is_top1

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        arrived = gradients[0]
        (of_hidden,) = ctx.saved_tensors
        result = None if arrived is None else (arrived[:, None] * of_hidden).to(ctx.dtype)
        return result, None, None, None, None


def _score_slice(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, needs_gradient: bool, with_metrics: bool
) -> tuple[Any, ...]:
    """(log-probabilities, entropy, mean logits, is top 1, gradient) of a slice of positions; None if not requested."""
    z = torch.mm(hidden, weight.t()).float()
    if bias is not None:
        z += bias.float()
    z_target = z.gather(1, targets[:, None])[:, 0]
    largest, index = z.max(dim=1)
    mean_logits = z.mean(dim=1) if with_metrics else None
    is_top1 = index == targets if with_metrics else None
    # Without a gradient, the entropy needs both the logits and their exponentials.
    e = (z - largest[:, None]).exp_() if with_metrics and not needs_gradient else z.sub_(largest[:, None]).exp_()
    total = e.sum(dim=1)
    log_z = largest + total.log()
    gradient = entropy = None
    if needs_gradient:
        # p − 1[v = target], so that terms cancel before they are rounded to the layer's type.
        p = e.div_(total[:, None])
        p.scatter_add_(1, targets[:, None], torch.full_like(total, -1)[:, None])
        gradient = torch.mm(p.to(weight.dtype), weight).float().neg_()
        if with_metrics:
            expected = z_target - (hidden.float() * gradient).sum(dim=1)
            if bias is not None:
                expected += (p * bias.float()).sum(dim=1)
            entropy = log_z - expected
    elif with_metrics:
        entropy = log_z - torch.linalg.vecdot(e, z) / total
    return z_target - log_z, entropy, mean_logits, is_top1, gradient
