"""IPO: preference pairs and a squared loss. TRL's DPO trainer computes it, with `loss_type="ipo"`.

With d(y) = (log π(y|x) − log π_ref(y|x)) / len(y), δ = d(chosen) − d(rejected) and c = 1/(2β):

    loss = (δ − c)²

With label smoothing ε (a pair's labels are swapped with probability ε) the expected loss is
(1−ε)(δ − c)² + ε(δ + c)² = (δ − c(1−2ε))² + c²(1 − (1−2ε)²): the same form, with β/(1−2ε) instead of β.

Source: Azar et al. 2023, arXiv:2310.12036, eq. 17; the division by length follows TRL, which confirmed it with the
authors. Label smoothing is ours: TRL ignores it for this loss.
"""

from typing import Any

from torch import Tensor

from trainer_core.config.ipo import IPOSettings
from trainer_core.methods.dpo_trainer import REFERENCE_COLUMNS, TokenizedDPOTrainer, TRLConfig
from trainer_core.methods.pairs import PairMethod
from trainer_core.scoring import Scores


class TokenizedIPOTrainer(TokenizedDPOTrainer):
    """TRL's DPO trainer with the label smoothing that it ignores for IPO."""

    smoothing: float = 0.0

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        # Other losses have no such form, and TRL's own option smooths those that it supports.
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


class IPO(PairMethod[IPOSettings]):
    """IPO, with δ averaged over tokens."""

    trainer_class = TokenizedIPOTrainer
    arguments_class = TRLConfig
    reference_columns = REFERENCE_COLUMNS

    def fixed_arguments(self) -> dict[str, Any]:
        return {"loss_type": "ipo"}

    def trl_arguments(self) -> dict[str, Any]:
        # TRL would ignore the smoothing, which `TokenizedIPOTrainer` adds.
        return {name: value for name, value in super().trl_arguments().items() if name != "label_smoothing"}

    def configure(self, trainer: Any) -> None:
        trainer.smoothing = self.config.label_smoothing

    def losses(self, chosen: Scores, rejected: Scores) -> Tensor:
        delta, target = chosen.avg_ratios - rejected.avg_ratios, 1 / (2 * self.config.beta)
        smoothing = self.config.label_smoothing
        return (1 - smoothing) * (delta - target) ** 2 + smoothing * (delta + target) ** 2
