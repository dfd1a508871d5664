"""CPO, arXiv:2401.08417."""

from typing import Any

from torch import Tensor

from tests import reference_losses
from tests.methods import Answered

CASES: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.2, "cpo_alpha": 0.3},
    {"loss_type": "hinge", "beta": 0.3},
    {"use_lora": False, "cpo_alpha": 0.0},
]
ROUNDING = (2e-6, 1e-6)
METRICS: list[dict[str, Any]] = [
    {"beta": 0.3, "cpo_alpha": 0.7, "label_smoothing": 0.1},
    {"beta": 0.3, "loss_type": "hinge"},
]
BETA = 0.1
METADATA = {"cpo_alpha": 1.0, "loss_type": "sigmoid", "label_smoothing": 0.0}
ARGUMENTS = METADATA


def loss(settings: Any, answers: dict[str, Answered], rows: list[dict[str, Any]]) -> Tensor:
    chosen, rejected = answers["chosen"], answers["rejected"]
    weights = (settings.beta, settings.cpo_alpha, settings.label_smoothing, settings.loss_type == "hinge")
    return reference_losses.cpo(chosen.logps, rejected.logps, chosen.tokens, *weights)


def stock() -> tuple[Any, Any, dict[str, Any]]:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOTrainer, CPOConfig, {}
