"""TRL's CPO trainer on tokenised rows, for every method whose loss it computes.

The trainer is experimental in TRL, so this is the only file that imports it.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from trainer_core.acceleration import is_accelerated
from trainer_core.methods.tokenized import ReshuffledBatches, TokenizedTrainer
from trainer_core.row_rules import Row
from trainer_core.wording import Message, say

with warnings.catch_warnings():
    # TRL warns each user that this may change; the version is pinned, and a test pins the signature.
    warnings.simplefilter("ignore")
    from trl.experimental.cpo import CPOConfig as TRLConfig
    from trl.experimental.cpo import CPOTrainer

__all__ = ["CPOTrainer", "TRLConfig", "TokenizedCPOTrainer"]

_LOSSES_OF_AVERAGES = ("ipo", "simpo")
_LOSSES = ("sigmoid", "hinge", *_LOSSES_OF_AVERAGES)


def columns_of(feature: Row, model: Any = None) -> dict[str, Any]:
    """The columns of a tokenised row that TRL's collator takes."""
    columns: dict[str, Any] = {}
    prompt = feature["prompt_ids"]
    for name in ("chosen", "rejected"):
        answer = feature[f"{name}_ids"]
        columns[f"{name}_input_ids"] = prompt + answer
        columns[f"{name}_attention_mask"] = [1] * (len(prompt) + len(answer))
        columns[f"{name}_labels"] = [-100] * len(prompt) + answer
    return {**columns, "prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}


class TokenizedCPOTrainer(ReshuffledBatches, TokenizedTrainer, CPOTrainer):
    """TRL's CPO trainer on tokenised rows."""

    # No method: datasets hashes the function that maps rows, and a method's hash would take the whole model into memory.
    tokenize_row: Any = staticmethod(columns_of)  # pyright: ignore[reportAssignmentType]

    def plain_path_reason(self) -> Message | None:
        if self.loss_type not in _LOSSES:
            return say("plain_loss_words", loss=str(self.loss_type))
        if self.alpha:
            return say("plain_alpha")
        if self.is_encoder_decoder:
            return say("plain_encoder")
        return super().plain_path_reason()

    def answer_log_probs(self, model: Any, batch: Any) -> Tensor | None:
        return super().answer_log_probs(model, batch) if is_accelerated(model) else None

    def concatenated_forward(self, model: Any, batch: Any) -> tuple[Tensor, ...]:
        """As TRL's, but returns only the mean logit at each answer position, which TRL averages again."""
        if not is_accelerated(model) or self.plain_path_reason():
            return super().concatenated_forward(model, batch)
        device = self.accelerator.device
        padding: Any = self.pad_token_id
        inputs = self.concatenated_inputs(batch, padding_value=padding, device=device)
        labels = inputs["concatenated_labels"]
        outputs = model(
            input_ids=inputs["concatenated_input_ids"],
            attention_mask=inputs["concatenated_attention_mask"],
            labels=labels,
            fused_lm_head=True,
        )
        is_answer = (labels[:, 1:] != -100).chunk(2)
        logps = outputs.log_probs.sum(dim=1).chunk(2)
        mean_logits = [of[mask] for of, mask in zip(outputs.mean_logits.chunk(2), is_answer, strict=True)]
        nll = -logps[0].sum() / is_answer[0].sum() if self.cpo_alpha else torch.zeros((), device=device)
        if self.loss_type in _LOSSES_OF_AVERAGES:
            logps = [sums / mask.sum(dim=1) for sums, mask in zip(logps, is_answer, strict=True)]
        return (*logps, *mean_logits, nll)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # TRL prepares the dataset of its constructor only.
        prepared = eval_dataset.map(columns_of) if eval_dataset is not None else None
        return super().evaluate(prepared, *args, **kwargs)
