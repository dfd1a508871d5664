"""DPO, arXiv:2305.18290, with label smoothing as in arXiv:2403.00409, and as a hinge, arXiv:2305.10425."""

from typing import Any

import torch
from torch import Tensor

from tests.methods import Answered
from tests.reference_losses import sigmoid

CASES: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.2},
    {"label_smoothing": 0.2, "loss_type": "robust"},
    {"loss_type": "hinge", "beta": 0.3},
    {"use_lora": False, "label_smoothing": 0.1},
]
# Float32 sums of about 200 nats, and two terms that nearly cancel.
ROUNDING = (5e-6, 2e-6)
METRICS: list[dict[str, Any]] = [
    {"beta": 0.3, "label_smoothing": 0.1},
    {"beta": 0.3, "label_smoothing": 0.1, "loss_type": "robust"},
    {"beta": 0.3, "loss_type": "hinge"},
]
BETA = 0.1
METADATA = {"loss_type": "sigmoid", "label_smoothing": 0.0}
ARGUMENTS = METADATA


def loss(settings: Any, answers: dict[str, Answered], rows: list[dict[str, Any]]) -> Tensor:
    """Eq. 7. With a share ε of the labels swapped: the expected loss, or the unbiased estimate (eq. 9 of rDPO)."""
    chosen, rejected, flipped = answers["chosen"], answers["rejected"], settings.label_smoothing
    x = settings.beta * ((chosen.logps - chosen.ref_logps) - (rejected.logps - rejected.ref_logps))
    kept, swapped = -torch.log(sigmoid(x)), -torch.log(sigmoid(-x))
    if settings.loss_type == "hinge":
        return torch.where(x < 1, 1 - x, torch.zeros_like(x)).mean()
    if settings.loss_type == "robust":
        return (((1 - flipped) * kept - flipped * swapped) / (1 - 2 * flipped)).mean()
    return ((1 - flipped) * kept + flipped * swapped).mean()


def stock() -> tuple[Any, Any, dict[str, Any]]:
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer, DPOConfig, {}
