"""DPO: preference pairs, each answer's log-ratio to the reference, and a logistic or a hinge loss.

With r(y) = log π(y|x) − log π_ref(y|x), summed over completion tokens, Δ = r(chosen) − r(rejected), and label smoothing ε:

    sigmoid:  −(1−ε) log σ(βΔ) − ε log σ(−βΔ)
    robust:   (−(1−ε) log σ(βΔ) + ε log σ(−βΔ)) / (1−2ε)
    hinge:    max(0, 1 − βΔ)

Sources: Rafailov et al. 2023, arXiv:2305.18290, eq. 7. Where labels are swapped with probability ε, conservative DPO is the
expected loss, and robust DPO is unbiased (Chowdhury et al. 2024, arXiv:2403.00409, eq. 9). The hinge: Zhao et al. 2023,
arXiv:2305.10425. TRL ignores ε for `sigmoid`; here it counts.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trainer_core.config.dpo import DPOSettings
from trainer_core.methods.dpo_trainer import REFERENCE_COLUMNS, TokenizedDPOTrainer, TRLConfig
from trainer_core.methods.pairs import PairMethod, smoothed
from trainer_core.scoring import Scores


class DPO(PairMethod[DPOSettings]):
    """DPO, with the label smoothing that TRL ignores in its sigmoid loss."""

    trainer_class = TokenizedDPOTrainer
    arguments_class = TRLConfig
    reference_columns = REFERENCE_COLUMNS

    def trl_arguments(self) -> dict[str, Any]:
        found, smoothing = super().trl_arguments(), self.config.label_smoothing
        if self.config.loss_type == "sigmoid" and smoothing:
            # TRL can only add up its losses: 2(1−ε)·sigmoid − (1−2ε)·robust is the conservative loss above.
            found |= {"loss_type": ["sigmoid", "robust"], "loss_weights": [2 * (1 - smoothing), 2 * smoothing - 1]}
        return found

    def losses(self, chosen: Scores, rejected: Scores) -> Tensor:
        smoothing = self.config.label_smoothing
        scaled = self.config.beta * (chosen.ratios - rejected.ratios)
        if self.config.loss_type == "hinge":
            return torch.relu(1 - scaled)
        if self.config.loss_type == "robust":
            return (-(1 - smoothing) * logsigmoid(scaled) + smoothing * logsigmoid(-scaled)) / (1 - 2 * smoothing)
        return smoothed(scaled, smoothing)
