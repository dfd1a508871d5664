"""What IPO and CPO share: metrics over pairs, and their comparison reply."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer_core.comparison import Comparison
from trainer_core.config import TrainingSettings
from trainer_core.plan import plan_pairs
from trainer_core.rows import Row
from trainer_core.scoring import Scores

LABEL_NAMES = [
    "chosen_labels",
    "rejected_labels",
    "chosen_input_ids",
    "rejected_input_ids",
    "chosen_attention_mask",
    "rejected_attention_mask",
]


def plan(rows: Sequence[Row], config: TrainingSettings) -> list[Row]:
    return plan_pairs(rows, config.seed)


def pair_metrics(policy: dict[str, Scores], losses: Tensor, margins: Tensor) -> dict[str, float | None]:
    """Metrics of pairs.

    Args:
        policy: the policy's scores of `chosen` and `rejected`.
        losses: (pairs,) the method's loss.
        margins: (pairs,) β times the difference of the log-ratios, as the method measures them.

    Returns:
        `preference_loss`, `preference_accuracy` (the chosen answer has the higher log-probability a token; a tie counts a
        half), `margin` (mean), `confidence` (mean σ(margin)), `chosen_nll` (nats a token).
    """
    gap = policy["chosen"].avg_logps - policy["rejected"].avg_logps
    return {
        "preference_loss": losses.mean().item(),
        "preference_accuracy": ((gap.sign() + 1) / 2).mean().item(),
        "margin": margins.mean().item(),
        "confidence": torch.sigmoid(margins).mean().item(),
        "chosen_nll": -(policy["chosen"].logps.sum() / policy["chosen"].tokens.sum()).item(),
    }


def reply(comparison: Comparison) -> dict[str, Any]:
    score = comparison.preference_score
    return {
        **comparison.responses(),
        "preference_score": score,
        "improvement_detected": score > 0.5 and comparison.trained_response != comparison.reference_response,
    }
