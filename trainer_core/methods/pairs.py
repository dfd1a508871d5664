"""What IPO and CPO share: their columns and plan, metrics over pairs, and their comparison reply."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer_core.comparison import Comparison
from trainer_core.config import TrainingSettings
from trainer_core.plan import plan_pairs
from trainer_core.row_rules import Row
from trainer_core.scoring import Scores, share_positive

LABEL_NAMES = [
    "chosen_labels",
    "rejected_labels",
    "chosen_input_ids",
    "rejected_input_ids",
    "chosen_attention_mask",
    "rejected_attention_mask",
]
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "row")
ANSWERS = ("chosen", "rejected")
NULLABLE = ()


def plan(rows: Sequence[Row], config: TrainingSettings) -> list[Row]:
    return plan_pairs(rows, config.per_device_train_batch_size, config.seed)


def arrange(rows: Sequence[Row], config: TrainingSettings) -> list[Row]:
    return list(rows)


def pair_metrics(scores: dict[str, Scores], losses: Tensor, margins: Tensor) -> dict[str, float | None]:
    """Metrics of pairs; `docs/metrics.md` has their formulas.

    Args:
        scores: of the `chosen` and the `rejected` answers.
        losses: (pairs,) the method's loss.
        margins: (pairs,) β times the difference of the log-ratios, as the method measures them.

    Returns:
        `preference_loss`, `preference_accuracy` (the chosen answer has the higher log-probability per token; a tie counts a
        half), `margin_accuracy` (the margin is positive; likewise), `margin` (mean), `confidence` (mean σ(margin)),
        `chosen_nll` and `mean_kl` (nats per token).
    """
    chosen, rejected = scores["chosen"], scores["rejected"]
    gap = chosen.avg_logps - rejected.avg_logps
    return {
        "preference_loss": losses.mean().item(),
        "preference_accuracy": share_positive(gap),
        "margin_accuracy": share_positive(margins),
        "margin": margins.mean().item(),
        "confidence": torch.sigmoid(margins).mean().item(),
        "chosen_nll": -(chosen.logps.sum() / chosen.tokens.sum()).item(),
        "mean_kl": ((chosen.kl.sum() + rejected.kl.sum()) / (chosen.tokens.sum() + rejected.tokens.sum())).item(),
    }


def reply(comparison: Comparison) -> dict[str, Any]:
    score = comparison.preference_score
    return {
        **comparison.responses(),
        "preference_score": score,
        "improvement_detected": score > 0.5 and comparison.texts_differ,
    }
