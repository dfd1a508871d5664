"""TRL's DPO trainer on tokenised rows, for every method whose loss it computes."""

from trl import DPOConfig as TRLConfig
from trl import DPOTrainer

from trainer_core.methods.tokenized import ReshuffledBatches, TokenizedTrainer
from trainer_core.wording import Message, say

__all__ = ["REFERENCE_COLUMNS", "TRLConfig", "TokenizedDPOTrainer"]

REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


class TokenizedDPOTrainer(ReshuffledBatches, TokenizedTrainer, DPOTrainer):
    """TRL's DPO trainer on tokenised rows."""

    def plain_path_reason(self) -> Message | None:
        if self.use_weighting:
            return say("plain_weighting")
        return super().plain_path_reason()
