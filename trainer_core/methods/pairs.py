"""What methods on pairs share: columns, plan, metrics and comparison reply."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trainer_core.comparison import Comparison
from trainer_core.config.pairs import PairSettings
from trainer_core.effect import Margin, paired_margin
from trainer_core.methods.base import PreferenceMethod
from trainer_core.plan import plan_pairs
from trainer_core.row_rules import Row
from trainer_core.scoring import Scores, share_positive

PairSettingsT = TypeVar("PairSettingsT", bound=PairSettings)


def smoothed(scaled: Tensor, smoothing: float) -> Tensor:
    """The logistic loss of pairs whose labels are swapped with probability ε: −(1−ε) log σ(x) − ε log σ(−x), unreduced."""
    return -(1 - smoothing) * logsigmoid(scaled) - smoothing * logsigmoid(-scaled)


class PairMethod(PreferenceMethod[PairSettingsT]):
    """A method whose loss compares a chosen with a rejected answer."""

    columns = ("prompt_ids", "chosen_ids", "rejected_ids", "row")
    answers = ("chosen", "rejected")
    label_names: ClassVar[tuple[str, ...]] = (
        "chosen_labels",
        "rejected_labels",
        "chosen_input_ids",
        "rejected_input_ids",
        "chosen_attention_mask",
        "rejected_attention_mask",
    )

    @abstractmethod
    def losses(self, chosen: Scores, rejected: Scores) -> Tensor:
        """(pairs,) float64: the method's loss, unreduced; see the formula of its module."""

    def plan(self, rows: Sequence[Row]) -> list[Row]:
        return plan_pairs(rows, self.config.per_device_train_batch_size, self.config.seed)

    def arrange(self, rows: Sequence[Row]) -> list[Row]:
        return list(rows)

    def metrics(self, scores: dict[str, Scores], rows: Sequence[Row]) -> dict[str, float | None]:
        """Metrics of pairs; `docs/metrics.md` has their formulas.

        Returns:
            `preference_loss`; `preference_accuracy` (the chosen answer has the higher log-probability per token; a tie
            counts a half); `margin_accuracy` (the margin is positive; likewise); `margin` (mean); `confidence` (mean
            σ(margin)); `chosen_nll` and `mean_kl` (nats per token).
        """
        chosen, rejected = scores["chosen"], scores["rejected"]
        margins = self._margins(scores)
        return {
            "preference_loss": self.losses(chosen, rejected).mean().item(),
            "preference_accuracy": share_positive(chosen.avg_logps - rejected.avg_logps),
            "margin_accuracy": share_positive(margins),
            "margin": margins.mean().item(),
            "confidence": torch.sigmoid(margins).mean().item(),
            "chosen_nll": -(chosen.logps.sum() / chosen.tokens.sum()).item(),
            "mean_kl": ((chosen.kl.sum() + rejected.kl.sum()) / (chosen.tokens.sum() + rejected.tokens.sum())).item(),
        }

    def row_losses(self, scores: dict[str, Scores], rows: Sequence[Row]) -> Tensor:
        return self.losses(scores["chosen"], scores["rejected"])

    def margin(self, scores: dict[str, Scores], rows: Sequence[Row]) -> Margin | None:
        return paired_margin(self._margins(scores).tolist())

    def _margins(self, scores: dict[str, Scores]) -> Tensor:
        return self.rewards(scores["chosen"]) - self.rewards(scores["rejected"])

    @staticmethod
    def reply(comparison: Comparison) -> dict[str, Any]:
        score = comparison.preference_score
        return {
            **comparison.responses(),
            "preference_score": score,
            "improvement_detected": score > 0.5 and comparison.texts_differ,
        }
