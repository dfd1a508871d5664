"""SimPO: preference pairs, log-probabilities averaged over tokens, a target margin, and no reference in the loss.

With p(y) = log π(y|x) / len(y), x = β (p(chosen) − p(rejected)) − γ, and label smoothing ε:

    loss = −(1−ε) log σ(x) − ε log σ(−x)

Source: Meng et al. 2024, arXiv:2405.14734, eq. 6. TRL's CPO trainer computes it, with `loss_type="simpo"` and no NLL term.
Metrics and comparisons use a reference.
"""

from typing import Any

from torch import Tensor

from trainer_core.config.simpo import SimPOSettings
from trainer_core.methods.cpo_trainer import TokenizedCPOTrainer, TRLConfig
from trainer_core.methods.pairs import PairMethod, smoothed
from trainer_core.scoring import Scores


class SimPO(PairMethod[SimPOSettings]):
    """SimPO, without a reference in the loss."""

    trainer_class = TokenizedCPOTrainer
    arguments_class = TRLConfig

    def fixed_arguments(self) -> dict[str, Any]:
        return {"loss_type": "simpo", "cpo_alpha": 0.0}

    def losses(self, chosen: Scores, rejected: Scores) -> Tensor:
        config = self.config
        return smoothed(config.beta * (chosen.avg_logps - rejected.avg_logps) - config.simpo_gamma, config.label_smoothing)
