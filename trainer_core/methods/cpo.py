"""CPO: preference pairs, the likelihood of the chosen answer, and no reference in the loss.

With Δ = log π(chosen|x) − log π(rejected|x), summed over completion tokens, and label smoothing ε:

    preference = −(1−ε) log σ(βΔ) − ε log σ(−βΔ)        (loss_type "sigmoid")
    preference = max(0, 1 − βΔ)                         (loss_type "hinge")
    loss = preference + cpo_alpha · NLL(chosen)         NLL in nats per token

Source: Xu et al. 2024, arXiv:2401.08417 (Contrastive Preference Optimization), eq. 3 to 5. Some documents call the method
Conservative: the NLL term keeps the chosen answer likely. The loss needs no reference; metrics and comparisons use one.
"""

import torch
from torch import Tensor

from trainer_core.config.cpo import CPOSettings
from trainer_core.methods.cpo_trainer import TokenizedCPOTrainer, TRLConfig
from trainer_core.methods.pairs import PairMethod, smoothed
from trainer_core.scoring import Scores


class CPO(PairMethod[CPOSettings]):
    """CPO, without a reference in the loss."""

    trainer_class = TokenizedCPOTrainer
    arguments_class = TRLConfig

    def losses(self, chosen: Scores, rejected: Scores) -> Tensor:
        config = self.config
        scaled = config.beta * (chosen.logps - rejected.logps)
        preference = torch.relu(1 - scaled) if config.loss_type == "hinge" else smoothed(scaled, config.label_smoothing)
        return preference + config.cpo_alpha * -chosen.logps.sum() / chosen.tokens.sum()
