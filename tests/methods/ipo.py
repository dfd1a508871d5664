"""IPO, arXiv:2310.12036."""

from typing import Any

from torch import Tensor

from tests import reference_losses
from tests.methods import Answered

CASES: list[dict[str, Any]] = [{}, {"label_smoothing": 0.2}, {"use_lora": False, "beta": 0.4}]
ROUNDING = (2e-6, 1e-6)
METRICS: list[dict[str, Any]] = [{"beta": 0.3, "label_smoothing": 0.1}]
BETA = 0.1
METADATA = {"label_smoothing": 0.0}
ARGUMENTS = {"label_smoothing": 0.0, "loss_type": "ipo"}


def loss(settings: Any, answers: dict[str, Answered], rows: list[dict[str, Any]]) -> Tensor:
    chosen, rejected = answers["chosen"], answers["rejected"]
    logps = (chosen.logps, rejected.logps, chosen.ref_logps, rejected.ref_logps)
    return reference_losses.ipo(*logps, chosen.tokens, rejected.tokens, settings.beta, settings.label_smoothing).mean()


def stock() -> tuple[Any, Any, dict[str, Any]]:
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer, DPOConfig, {"loss_type": "ipo"}
