"""IPO: preference pairs and a squared loss. TRL's DPO trainer computes it, with `loss_type="ipo"`.

With d(y) = (log π(y|x) − log π_ref(y|x)) / len(y), δ = d(chosen) − d(rejected) and c = 1/(2β):

    loss = (δ − c)²

With label smoothing ε (a pair's labels are swapped with probability ε) the expected loss is
(1−ε)(δ − c)² + ε(δ + c)² = (δ − c(1−2ε))² + c²(1 − (1−2ε)²): the same form, with β/(1−2ε) in the place of β.

Source: Azar et al. 2023, arXiv:2310.12036, eq. 17; the division by length follows TRL, which confirmed it with the
authors. Label smoothing is ours: TRL ignores it for this loss.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from trl import DPOConfig as TRLConfig
from trl import DPOTrainer

from trainer_core.config import IPOSettings
from trainer_core.effect import Margin, paired_margin
from trainer_core.methods.pairs import ANSWERS, COLUMNS, LABEL_NAMES, NULLABLE, arrange, pair_metrics, plan, reply
from trainer_core.methods.tokenized import ReshuffledBatches, TokenizedTrainer
from trainer_core.row_rules import Row
from trainer_core.scoring import Scores

REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
PLANNED_BY = ()

__all__ = ["ANSWERS", "COLUMNS", "LABEL_NAMES", "NULLABLE", "arrange", "plan", "reply"]


class TokenizedIPOTrainer(ReshuffledBatches, TokenizedTrainer, DPOTrainer):
    """TRL's DPO trainer on tokenised rows, with the label smoothing that TRL leaves out for IPO."""

    smoothing: float = 0.0

    def plain_path_reason(self) -> str | None:
        if self.use_weighting:
            return "the loss weighs tokens by how concentrated the whole distribution is (use_weighting)"
        return super().plain_path_reason()

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        # Other losses have no such form, and TRL smooths those that it can smooth by its own option.
        is_ipo = (self.loss_types, self.loss_weights) == (["ipo"], [1.0]) and not self.use_weighting
        if not (self.smoothing and is_ipo and self.f_divergence_type == "reverse_kl"):
            return super()._compute_loss(model, inputs, return_outputs)
        shrink = 1 - 2 * self.smoothing
        beta = self.beta
        self.beta = beta / shrink
        try:
            result = super()._compute_loss(model, inputs, return_outputs)
        finally:
            self.beta = beta
        mode = "train" if model.training else "eval"
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
            self._metrics[mode][name][-1] *= shrink
        constant = (1 - shrink**2) / (2 * beta) ** 2
        return (result[0] + constant, result[1]) if return_outputs else result + constant


def trainer_class() -> type[Any]:
    return TokenizedIPOTrainer


def arguments_class() -> type[Any]:
    return TRLConfig


def method_arguments(config: IPOSettings) -> dict[str, Any]:
    return {
        "beta": config.beta,
        "loss_type": "ipo",
        "label_smoothing": config.label_smoothing,
        "max_length": config.max_length,
        "max_prompt_length": config.max_prompt_length,
    }


def trl_arguments(config: IPOSettings) -> dict[str, Any]:
    return {"beta": config.beta, "loss_type": "ipo", "max_length": config.max_length}


def ipo_loss(delta: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """The loss of each pair, unreduced, from δ (pairs,); see the module's formula."""
    target = 1 / (2 * beta)
    return (1 - label_smoothing) * (delta - target) ** 2 + label_smoothing * (delta + target) ** 2


def metrics(config: IPOSettings, scores: dict[str, Scores], rows: Sequence[Row]) -> dict[str, float | None]:
    delta = scores["chosen"].avg_ratios - scores["rejected"].avg_ratios
    return pair_metrics(scores, ipo_loss(delta, config.beta, config.label_smoothing), config.beta * delta)


def margin(config: IPOSettings, scores: dict[str, Scores], rows: Sequence[Row]) -> Margin | None:
    return paired_margin((config.beta * (scores["chosen"].avg_ratios - scores["rejected"].avg_ratios)).tolist())


def metadata(config: IPOSettings, reference_name: str) -> dict[str, Any]:
    return {
        "training_method": "ipo",
        "beta": config.beta,
        "label_smoothing": config.label_smoothing,
        "max_prompt_length": config.max_prompt_length,
        "max_length": config.max_length,
        "ref_model_name": reference_name,
    }
