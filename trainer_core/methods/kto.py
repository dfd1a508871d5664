"""KTO: rows with one completion and a label.

With r = log π(y|x) − log π_ref(y|x), summed over the completion, and z = max(0, mean of r over mismatched pairs):

    loss = λ_D · (1 − σ(β (r − z)))    for a desirable row
    loss = λ_U · (1 − σ(β (z − r)))    for an undesirable row

Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7; z is estimated within the batch, as TRL does.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl import KTOConfig as TRLConfig
from trl import KTOTrainer

from trainer_core.comparison import Comparison
from trainer_core.config import KTOSettings
from trainer_core.methods.tokenized import TokenizedTrainer
from trainer_core.plan import plan_kto
from trainer_core.rows import Row
from trainer_core.scoring import Scores

LABEL_NAMES = ["completion_labels"]


class TokenizedKTOTrainer(TokenizedTrainer, KTOTrainer):
    """TRL's KTO trainer on tokenised, planned rows."""


def trainer_class() -> type[Any]:
    return TokenizedKTOTrainer


def arguments_class() -> type[Any]:
    return TRLConfig


def method_arguments(config: KTOSettings) -> dict[str, Any]:
    return {
        "beta": config.beta,
        "desirable_weight": config.desirable_weight,
        "undesirable_weight": config.undesirable_weight,
        "max_length": config.max_length,
        "max_prompt_length": config.max_prompt_length,
    }


def trl_arguments(config: KTOSettings) -> dict[str, Any]:
    # Sequential: the plan's order carries the KL partners. Without LoRA and without a reference copy, the reference's
    # log-probabilities are computed once, before the weights move.
    return {
        "beta": config.beta,
        "desirable_weight": config.desirable_weight,
        "undesirable_weight": config.undesirable_weight,
        "max_length": config.max_length,
        "train_sampling_strategy": "sequential",
        "precompute_ref_log_probs": not (config.use_ref_model or config.use_lora),
    }


def plan(rows: Sequence[Row], config: KTOSettings) -> list[Row]:
    return plan_kto(rows, config.per_device_train_batch_size, config.seed)


def metrics(
    config: KTOSettings, policy: dict[str, Scores], reference: dict[str, Scores], labels: Tensor | None
) -> dict[str, float | None]:
    """`kto_loss` and accuracies. A row is right when the sign of r − z is its label's; a tie counts a half.

    A label that no row has gives None for its accuracy.
    """
    assert labels is not None
    ratios = policy["completion"].logps - reference["completion"].logps
    z = (policy["KL_completion"].logps - reference["KL_completion"].logps).mean().clamp(min=0)
    signs = torch.where(labels, 1.0, -1.0).double()
    weights = torch.where(labels, config.desirable_weight, config.undesirable_weight).double()
    losses = weights * (1 - torch.sigmoid(config.beta * signs * (ratios - z)))
    right = ((signs * (ratios - z)).sign() + 1) / 2
    return {
        "kto_loss": losses.mean().item(),
        "desirable_accuracy": right[labels].mean().item() if labels.any() else None,
        "undesirable_accuracy": right[~labels].mean().item() if (~labels).any() else None,
        "overall_accuracy": right.mean().item(),
        "kl_estimate": z.item(),
    }


def metadata(config: KTOSettings, reference_name: str) -> dict[str, Any]:
    return {
        "training_method": "kto",
        "beta": config.beta,
        "desirable_weight": config.desirable_weight,
        "undesirable_weight": config.undesirable_weight,
        "max_prompt_length": config.max_prompt_length,
        "max_length": config.max_length,
        "use_ref_model": config.use_ref_model,
        "ref_model_name": reference_name,
    }


def reply(comparison: Comparison) -> dict[str, Any]:
    score = comparison.preference_score
    return {
        **comparison.responses(),
        "preference_signal": "desirable" if score > 0.5 else "undesirable",
        "confidence_score": max(score, 1 - score),
    }
