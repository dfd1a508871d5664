"""KTO: rows with one completion and a label.

With r = log π(y|x) − log π_ref(y|x), summed over the completion, and z = max(0, mean of r over mismatched pairs):

    loss = λ_D · (1 − σ(β (r − z)))    for a desirable row
    loss = λ_U · (1 − σ(β (z − r)))    for an undesirable row

With `loss_type="apo_zero_unpaired"` z is 0: APO-zero on labelled rows (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7).
With `use_confidence` each row's loss is multiplied by its confidence as well.

Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7; z is estimated within the batch, as TRL does. The
confidence is ours.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from trl import KTOConfig as TRLConfig
from trl import KTOTrainer

from trainer_core.acceleration import Behind, is_accelerated
from trainer_core.comparison import Comparison
from trainer_core.config.kto import KTOSettings
from trainer_core.effect import Margin, unpaired_margin
from trainer_core.methods.base import PreferenceMethod
from trainer_core.methods.tokenized import TokenizedTrainer
from trainer_core.plan import plan_kto, suggested_weights
from trainer_core.row_rules import Row
from trainer_core.rows import pair_places
from trainer_core.scoring import Scores, share_positive
from trainer_core.wording import Message, say

_BY_LABEL = tuple(f"{what}/{label}" for what in ("rewards", "logps", "logits") for label in ("chosen", "rejected"))

_LOSSES = ("kto", "apo_zero_unpaired")
# How far the weighted ratio of the labels may lie outside the paper's range before it is worth a warning.
_RATIO_TOLERANCE = 1.25


class TokenizedKTOTrainer(TokenizedTrainer, KTOTrainer):
    """TRL's KTO trainer on tokenised, planned rows, which may have a `loss_weight` each."""

    def plain_path_reason(self) -> Message | None:
        if self.loss_type not in _LOSSES:
            return say("plain_loss_unknown", loss=str(self.loss_type))
        return super().plain_path_reason()

    def answer_log_probs(self, model: Any, batch: Any) -> Tensor | None:
        if not (is_accelerated(model) and self.calculate_KL):
            return super().answer_log_probs(model, batch)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
        own, mismatched = ({name: tensor[i : i + 1] for name, tensor in inputs.items()} for i in (0, 1))
        behind = Behind(**mismatched)
        model(**own, fused_lm_head=True, behind=behind)
        first = model(**own, use_cache=False, fused_lm_head=True).log_probs
        assert behind.log_probs is not None
        return torch.cat([first, behind.log_probs])

    def _compute_kl_logps(self, model: Any, batch: Any) -> Any:
        """As TRL's; also scores the rows' own completions in the same pass, for TRL's next call."""
        if not is_accelerated(model) or self.plain_path_reason() or not self.calculate_KL:
            return super()._compute_kl_logps(model, batch)
        behind = Behind(batch["KL_input_ids"], batch["KL_attention_mask"], _labels(batch, "KL_"))
        model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=_labels(batch, ""),
            fused_lm_head=True,
            behind=behind,
        )
        assert behind.log_probs is not None
        self.check_finite(behind.log_probs)
        return behind.log_probs.sum(dim=1)

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        weights = inputs.pop("loss_weight", None)
        if weights is None:
            return super()._compute_loss(model, inputs, return_outputs)
        # TRL multiplies the losses of each label, in the order of the rows, by that label's weight.
        by_label, is_desirable = (self.desirable_weight, self.undesirable_weight), inputs["label"].bool()
        self.desirable_weight = by_label[0] * weights[is_desirable]  # pyright: ignore[reportAttributeAccessIssue]
        self.undesirable_weight = by_label[1] * weights[~is_desirable]  # pyright: ignore[reportAttributeAccessIssue]
        try:
            return super()._compute_loss(model, inputs, return_outputs)
        finally:
            self.desirable_weight, self.undesirable_weight = by_label


def _labels(batch: Any, prefix: str) -> Tensor:
    return batch[f"{prefix}input_ids"].masked_fill(batch[f"{prefix}completion_mask"] == 0, -100)


class KTO(PreferenceMethod[KTOSettings]):
    """KTO, which plans each row's partner for the KL estimate into its batch, and APO-zero, which has no such estimate."""

    trainer_class = TokenizedKTOTrainer
    arguments_class = TRLConfig
    label_names = ("completion_labels",)
    columns = ("prompt_ids", "completion_ids", "KL_completion_ids", "label", "row", "KL_row", "loss_weight")
    answers = ("completion", "KL_completion")
    reference_columns = ("ref_logps", "ref_KL_logps")
    # Each row has its partner for the KL estimate within its batch.
    planned_by = ("per_device_train_batch_size", "per_device_eval_batch_size", "auto_find_batch_size")
    nullable = (
        *_BY_LABEL,
        "rewards/margins",
        "eval_desirable_accuracy",
        "eval_undesirable_accuracy",
        "eval_preference_accuracy",
        "eval_margin_accuracy",
        "eval_margin",
        "eval_kl_estimate",
        "eval_mean_kl",
    )
    """Metrics that need both labels, pairs, a KL estimate or a reference, which a batch or run may lack."""

    def __init__(self, config: KTOSettings) -> None:
        super().__init__(config)
        if not config.estimates_kl:
            self.columns = tuple(name for name in self.columns if not name.startswith("KL_"))
            self.answers, self.reference_columns = self.answers[:1], self.reference_columns[:1]

    def trl_arguments(self) -> dict[str, Any]:
        # Sequential: the plan's order carries the KL partners. Without LoRA and without a reference copy, the reference's
        # log-probabilities are computed once, before the weights move.
        config = self.config
        return {
            **super().trl_arguments(),
            "train_sampling_strategy": "sequential",
            "precompute_ref_log_probs": not (config.use_ref_model or config.use_lora),
        }

    def plan(self, rows: Sequence[Row]) -> list[Row]:
        return self._planned(rows, self.config.per_device_train_batch_size)

    def arrange(self, rows: Sequence[Row]) -> list[Row]:
        return self._planned(rows, self.config.per_device_eval_batch_size, keep_all=True)

    def _planned(self, rows: Sequence[Row], batch_size: int, *, keep_all: bool = False) -> list[Row]:
        planned = plan_kto(self._weighted(rows), batch_size, self.config.seed, keep_all=keep_all)
        if self.config.estimates_kl:
            return planned
        return [{name: value for name, value in row.items() if not name.startswith("KL_")} for row in planned]

    def _weighted(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Rows with their `loss_weight`, or without it if confidence is unused: a file may have that field."""
        if self.config.use_confidence:
            return [{**row, "loss_weight": float(row.get("confidence") or 1)} for row in rows]
        return [{name: value for name, value in row.items() if name != "loss_weight"} for row in rows]

    def row_warnings(self, rows: Sequence[Row]) -> Iterator[tuple[str, Message]]:
        desirable = sum(row["label"] for row in rows)
        undesirable = len(rows) - desirable
        weights = suggested_weights(desirable, undesirable)
        if weights is None:
            code = "one_label_only_desirable" if desirable else "one_label_only_undesirable"
            yield "one_label_only", say(code, method=self.config.title)
            return
        ratio = self.config.desirable_weight * desirable / (self.config.undesirable_weight * undesirable)
        if not 1 / _RATIO_TOLERANCE <= ratio <= 4 / 3 * _RATIO_TOLERANCE:
            counts = {"desirable": desirable, "undesirable": undesirable, "ratio": round(ratio, 2)}
            ends = {name.replace("_weight", ""): round(value, 2) for name, value in weights.items()}
            yield "labels_unbalanced", say("labels_unbalanced", **counts, **ends)

    def metrics(self, scores: dict[str, Scores], rows: Sequence[Row]) -> dict[str, float | None]:
        """Metrics of labelled rows; `docs/metrics.md` has their formulas.

        A row is right if the sign of r − z is its label's; a tie counts a half. A label without rows gives None. So do rows
        that do not come from pairs, for metrics that compare the two answers of a pair.
        """
        config = self.config
        labels = torch.tensor([row["label"] for row in rows])
        answers = scores["completion"]
        rewards, z = self.rewards(answers), self._z(scores)
        agreement = self._agreement(scores, labels)
        chosen, rejected = torch.tensor(pair_places(rows), dtype=torch.long).reshape(-1, 2).T
        gaps = answers.avg_logps[chosen] - answers.avg_logps[rejected]
        margins = rewards[chosen] - rewards[rejected]
        return {
            "kto_loss": self.row_losses(scores, rows).mean().item(),
            "desirable_accuracy": share_positive(agreement[labels]),
            "undesirable_accuracy": share_positive(agreement[~labels]),
            "overall_accuracy": share_positive(agreement),
            "preference_accuracy": share_positive(gaps),
            "margin_accuracy": share_positive(margins),
            "margin": margins.mean().item() if len(margins) else None,
            "kl_estimate": z.item() if config.estimates_kl else None,
            "mean_kl": answers.mean_kl,
        }

    def row_losses(self, scores: dict[str, Scores], rows: Sequence[Row]) -> Tensor:
        config, labels = self.config, torch.tensor([row["label"] for row in rows])
        weights = torch.where(labels, config.desirable_weight, config.undesirable_weight).double()
        weights = weights * torch.tensor([row.get("loss_weight", 1.0) for row in rows], dtype=torch.float64)
        return weights * (1 - torch.sigmoid(config.beta * self._agreement(scores, labels)))

    def _agreement(self, scores: dict[str, Scores], labels: Tensor) -> Tensor:
        """(rows,) how far each log-ratio lies on its label's side of z."""
        return torch.where(labels, 1.0, -1.0).double() * (scores["completion"].ratios - self._z(scores))

    def _z(self, scores: dict[str, Scores]) -> Tensor:
        """The estimate of the KL divergence; 0 if the loss has none, or if the mismatched answers were not scored."""
        mismatched = scores.get("KL_completion") if self.config.estimates_kl else None
        return torch.zeros(()).double() if mismatched is None else mismatched.ratios.mean().clamp(min=0)

    def margin(self, scores: dict[str, Scores], rows: Sequence[Row]) -> Margin | None:
        """Mean reward of desirable rows minus that of undesirable ones; None if a label has no rows."""
        labels = torch.tensor([bool(row["label"]) for row in rows])
        rewards = self.rewards(scores["completion"])
        return unpaired_margin(rewards[labels].tolist(), rewards[~labels].tolist())

    @staticmethod
    def reply(comparison: Comparison) -> dict[str, Any]:
        score = comparison.preference_score
        return {
            **comparison.responses(),
            "preference_signal": "desirable" if score > 0.5 else "undesirable",
            "confidence_score": max(score, 1 - score),
        }
