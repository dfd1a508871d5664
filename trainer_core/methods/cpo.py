"""CPO: preference pairs, no reference in the loss, and the likelihood of the chosen answer.

With Δ = log π(chosen|x) − log π(rejected|x), summed over completion tokens, and label smoothing ε:

    preference = −(1−ε) log σ(βΔ) − ε log σ(−βΔ)        (loss_type "sigmoid")
    preference = max(0, 1 − βΔ)                         (loss_type "hinge")
    loss = preference + cpo_alpha · NLL(chosen)         NLL in nats a token

Source: Xu et al. 2024, arXiv:2401.08417 (Contrastive Preference Optimization), eq. 3 to 5. Some documents call the method
Conservative: the NLL term keeps the chosen answer likely. The loss needs no reference; metrics and comparisons use one.

The trainer is experimental in TRL, so this is the only file that imports it.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trainer_core.acceleration import is_accelerated
from trainer_core.config import CPOSettings
from trainer_core.effect import Margin, paired_margin
from trainer_core.methods.pairs import ANSWERS, COLUMNS, LABEL_NAMES, NULLABLE, arrange, pair_metrics, plan, reply
from trainer_core.methods.tokenized import ReshuffledBatches, TokenizedTrainer
from trainer_core.row_rules import Row
from trainer_core.scoring import Scores

with warnings.catch_warnings():
    # TRL warns each user that this may change; the version is pinned, and a test pins the signature.
    warnings.simplefilter("ignore")
    from trl.experimental.cpo import CPOConfig as TRLConfig
    from trl.experimental.cpo import CPOTrainer

REFERENCE_COLUMNS = ()
_LOSSES_OF_SUMS = ("sigmoid", "hinge")
PLANNED_BY = ()

__all__ = ["ANSWERS", "COLUMNS", "LABEL_NAMES", "NULLABLE", "arrange", "plan", "reply"]


class TokenizedCPOTrainer(ReshuffledBatches, TokenizedTrainer, CPOTrainer):
    """TRL's CPO trainer on tokenised rows."""

    def tokenize_row(self, feature: Row, model: Any = None) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        prompt = feature["prompt_ids"]
        for name in ("chosen", "rejected"):
            answer = feature[f"{name}_ids"]
            columns[f"{name}_input_ids"] = prompt + answer
            columns[f"{name}_attention_mask"] = [1] * (len(prompt) + len(answer))
            columns[f"{name}_labels"] = [-100] * len(prompt) + answer
        return {**columns, "prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}

    def plain_path_reason(self) -> str | None:
        if self.loss_type not in _LOSSES_OF_SUMS:
            return f"the loss {self.loss_type} takes other log-probabilities than sums over answers (loss_type)"
        if self.alpha:
            return "the loss transforms probabilities (alpha)"
        if self.is_encoder_decoder:
            return "the model encodes and decodes (is_encoder_decoder)"
        return super().plain_path_reason()

    def answer_log_probs(self, model: Any, batch: Any) -> Tensor | None:
        return super().answer_log_probs(model, batch) if is_accelerated(model) else None

    def concatenated_forward(self, model: Any, batch: Any) -> tuple[Tensor, ...]:
        """As TRL's, but of the logits only their mean at each answer position, of which TRL takes the mean again."""
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
        logps = outputs.log_probs.sum(dim=1).chunk(2)
        is_answer = (labels[:, 1:] != -100).chunk(2)
        mean_logits = [of[mask] for of, mask in zip(outputs.mean_logits.chunk(2), is_answer, strict=True)]
        nll = -logps[0].sum() / is_answer[0].sum() if self.cpo_alpha else torch.zeros((), device=device)
        return (*logps, *mean_logits, nll)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # TRL prepares the dataset of its constructor only.
        prepared = eval_dataset.map(self.tokenize_row) if eval_dataset is not None else None
        return super().evaluate(prepared, *args, **kwargs)


def trainer_class() -> type[Any]:
    return TokenizedCPOTrainer


def arguments_class() -> type[Any]:
    return TRLConfig


def method_arguments(config: CPOSettings) -> dict[str, Any]:
    return {
        "beta": config.beta,
        "loss_type": config.loss_type,
        "label_smoothing": config.label_smoothing,
        "max_length": config.max_length,
        "max_prompt_length": config.max_prompt_length,
        "cpo_alpha": config.cpo_alpha,
    }


def trl_arguments(config: CPOSettings) -> dict[str, Any]:
    return {
        "beta": config.beta,
        "loss_type": config.loss_type,
        "label_smoothing": config.label_smoothing,
        "max_length": config.max_length,
        "cpo_alpha": config.cpo_alpha,
    }


def preference_loss(delta: Tensor, config: CPOSettings) -> Tensor:
    """The preference term of each pair, unreduced, from Δ (pairs,); see the module's formula."""
    scaled = config.beta * delta
    if config.loss_type == "hinge":
        return torch.relu(1 - scaled)
    return -(1 - config.label_smoothing) * logsigmoid(scaled) - config.label_smoothing * logsigmoid(-scaled)


def metrics(config: CPOSettings, scores: dict[str, Scores], rows: Sequence[Row]) -> dict[str, float | None]:
    chosen, rejected = scores["chosen"], scores["rejected"]
    nll = -chosen.logps.sum() / chosen.tokens.sum()
    losses = preference_loss(chosen.logps - rejected.logps, config) + config.cpo_alpha * nll
    return pair_metrics(scores, losses, config.beta * (chosen.ratios - rejected.ratios))


def margin(config: CPOSettings, scores: dict[str, Scores], rows: Sequence[Row]) -> Margin | None:
    return paired_margin((config.beta * (scores["chosen"].ratios - scores["rejected"].ratios)).tolist())


def metadata(config: CPOSettings, reference_name: str) -> dict[str, Any]:
    return {
        "training_method": "cpo",
        "beta": config.beta,
        "cpo_alpha": config.cpo_alpha,
        "loss_type": config.loss_type,
        "label_smoothing": config.label_smoothing,
        "max_prompt_length": config.max_prompt_length,
        "max_length": config.max_length,
        "ref_model_name": reference_name,
    }
