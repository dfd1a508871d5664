"""SimPO, arXiv:2405.14734."""

from typing import Any

import torch
from torch import Tensor

from tests.methods import Answered
from tests.reference_losses import sigmoid

CASES: list[dict[str, Any]] = [
    {"beta": 2.0},
    {"beta": 2.5, "simpo_gamma": 0.5, "label_smoothing": 0.2},
    {"use_lora": False, "simpo_gamma": 0.0},
]
ROUNDING = (2e-6, 1e-6)
METRICS: list[dict[str, Any]] = [{"simpo_gamma": 0.7, "label_smoothing": 0.1}]
BETA = 2.0
METADATA = {"simpo_gamma": 1.0, "label_smoothing": 0.0}
ARGUMENTS = {**METADATA, "loss_type": "simpo", "cpo_alpha": 0.0}


def loss(settings: Any, answers: dict[str, Answered], rows: list[dict[str, Any]]) -> Tensor:
    """Eq. 6, or the expected loss if a share ε of the labels is swapped."""
    chosen, rejected, flipped = answers["chosen"], answers["rejected"], settings.label_smoothing
    x = settings.beta * (chosen.logps / chosen.tokens - rejected.logps / rejected.tokens) - settings.simpo_gamma
    return ((1 - flipped) * -torch.log(sigmoid(x)) + flipped * -torch.log(sigmoid(-x))).mean()


def stock() -> tuple[Any, Any, dict[str, Any]]:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOTrainer, CPOConfig, {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 1.0}
