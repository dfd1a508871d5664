"""Before a model's numbers are used, compares every way of computing them with a plain forward pass, on one row.

The loss comes from TRL's call, which acceleration may answer; metrics, early stopping and comparisons come from `scoring`.
A model that one of them gets wrong would train without an error and report meaningless numbers, so it is refused here.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer_core.acceleration import causal_of
from trainer_core.errors import ForwardMismatch, ModelRefused
from trainer_core.loading import is_of_the_machine, reason_of
from trainer_core.models import Precision
from trainer_core.own_head import layers_of
from trainer_core.row_rules import Row
from trainer_core.scoring import score
from trainer_core.wording import rounded, say

# Nats per token by which rounding may always let two ways differ.
_LEAST, _LEAST_IN_HALF = 1e-4, 0.02
_TIMES_SPREAD = 10
# Checks the longest row whose logits fit: windows and caps show on long rows.
_MOST_LOGITS_BYTES = 2**28
_PADDING = 8


@dataclass(frozen=True)
class Batch:
    """Answers to one prompt, padded on the right, as TRL's trainers pass them.

    Attributes:
        input_ids, attention_mask: (answers, width) int64.
        labels: (answers, width) int64, −100 except at answer tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    @classmethod
    def of(cls, prompt: list[int], answers: Sequence[list[int]], device: torch.device, padding: int = 0) -> "Batch":
        width = len(prompt) + max(map(len, answers)) + padding
        ids = torch.zeros(len(answers), width, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, answer in enumerate(answers):
            end = len(prompt) + len(answer)
            ids[i, :end], mask[i, :end] = torch.tensor(prompt + answer), 1
            labels[i, len(prompt) : end] = torch.tensor(answer)
        return cls(ids.to(device), mask.to(device), labels.to(device))


@dataclass(frozen=True)
class _Answered:
    """A row: its number in the file, and token ids."""

    number: int
    prompt: list[int]
    answers: list[list[int]]


@torch.no_grad()
def check(
    trainer: Any,
    models: dict[str, Any],
    rows: Sequence[Row],
    answers: Sequence[str],
    *,
    precision: Precision,
    on_pass: Callable[[], None] = lambda: None,
) -> None:
    """Compares the log-probabilities of one row's answers. Leaves the models and the token counts as they were.

    The difference per token may be ten times that between two plain passes, one with padding and one without. It may always
    be 1e-4 nats in float32 or 0.02 in half precision.

    Args:
        trainer: the method's TRL trainer, which calls each model as its loss does.
        models: by name; those without weights of their own, and None, are skipped.
        answers: names of a row's answers.
        on_pass: called after each way.

    Raises:
        ForwardMismatch: a way gives different numbers from the plain pass.
        ModelRefused: the model cannot be computed at all.
    """
    own: dict[str, Any] = {name: model for name, model in models.items() if isinstance(model, torch.nn.Module)}
    for name, model in own.items():
        row = _row(rows, answers, model.config.get_text_config().vocab_size)
        was_training, counts = model.training, trainer.savings.counts()
        model.eval()
        try:
            _check_model(trainer, name, model, row, on_pass, is_half=precision != "fp32")
        except Exception as error:
            if is_of_the_machine(error):
                raise
            facts = {"type": type(causal_of(model)).__name__, "problem": reason_of(error)}
            raise ModelRefused.at("model_name", say("model_fails", kind=say(f"kind.{name}"), **facts)) from error
        finally:
            model.train(was_training)
            trainer.savings.restore(counts)


def _check_model(
    trainer: Any,
    name: str,
    model: Any,
    row: _Answered,
    on_pass: Callable[[], None],
    *,
    is_half: bool,
) -> None:
    causal = causal_of(model)
    if layers_of(causal) is causal:
        sentence = say("model_layers_unknown", kind=say(f"kind.{name}"), type=type(causal).__name__)
        raise ModelRefused.at("model_name", sentence)
    device = next(causal.parameters()).device
    tokens = torch.tensor([float(len(answer)) for answer in row.answers])

    def compare(way: str, find: Callable[[], Tensor | None], *, autocast: bool) -> None:
        """`find` returns a way's summed log-probabilities, (answers,), or None if it is a plain pass itself."""
        context = trainer.accelerator.autocast if autocast else nullcontext
        alone = torch.cat([_plain(causal, Batch.of(row.prompt, [answer], device), context) for answer in row.answers])
        padded = _plain(causal, Batch.of(row.prompt, row.answers, device, _PADDING), context)
        on_pass()
        if not alone.isfinite().all():
            # The weight check and the loss guard say what is broken.
            return
        with context():
            found = find()
        on_pass()
        if found is None:
            return
        difference, spread = (((sums.float().cpu() - alone).abs() / tokens).max().item() for sums in (found, padded))
        rounds = causal.dtype != torch.float32 or (autocast and is_half)
        limit = max(_TIMES_SPREAD * spread, _LEAST_IN_HALF if rounds else _LEAST)
        if not difference <= limit:
            sentence = say(
                "forward_differs",
                way=say(f"way.{way}"),
                kind=say(f"kind.{name}"),
                type=type(causal).__name__,
                difference=rounded(difference),
                limit=rounded(limit),
                row=trainer.row_names.long(row.number),
            )
            raise ForwardMismatch.at("model_name", sentence)

    def in_loss() -> Tensor | None:
        found = trainer.answer_log_probs(model, Batch.of(row.prompt, row.answers, device))
        return None if found is None else found.float().sum(dim=1)

    def in_metrics() -> Tensor:
        scores = score(model, None, [row.prompt], {str(i): [ids] for i, ids in enumerate(row.answers)})
        return torch.cat([of_answer.logps for of_answer in scores.values()])

    compare("loss", in_loss, autocast=True)
    compare("metrics", in_metrics, autocast=False)


def _plain(causal: Any, batch: Batch, context: Callable[[], AbstractContextManager[Any]]) -> Tensor:
    """(answers,) float32 on the CPU: summed log-probabilities by the model's own forward pass."""
    with context():
        # The class's own: TRL and our package replace the instance's.
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        logits = type(causal).forward(causal, **inputs).logits
    wanted = batch.labels[:, 1:] != -100
    log_probs = logits[:, :-1][wanted].float().log_softmax(dim=-1)
    targets = batch.labels[:, 1:][wanted].to(log_probs.device)
    sums = torch.zeros(len(wanted), device=log_probs.device)
    owners = wanted.nonzero()[:, 0].to(log_probs.device)
    return sums.index_add_(0, owners, log_probs.gather(1, targets[:, None])[:, 0]).cpu()


def _row(rows: Sequence[Row], answers: Sequence[str], vocabulary: int) -> _Answered:
    """The longest row whose logits stay within the limit, or the shortest."""

    def tokens(row: Row) -> int:
        return len(row["prompt_ids"]) + max(len(row[f"{answer}_ids"]) for answer in answers)

    # Four bytes for each of a batch's logits.
    fitting = [row for row in rows if 4 * vocabulary * len(answers) * (tokens(row) + _PADDING) <= _MOST_LOGITS_BYTES]
    row = max(fitting, key=tokens) if fitting else min(rows, key=tokens)
    return _Answered(row["row"], row["prompt_ids"], [row[f"{answer}_ids"] for answer in answers])
