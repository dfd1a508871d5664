"""What the three TRL trainers share: tokenised rows, staged checkpoints, observed evaluation, guards."""

import json
import random
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler, get_worker_info
from trl.trainer.utils import add_fused_lm_head

from trainer_core import adapters, model_files, weight_headers
from trainer_core.acceleration import Savings, accelerate, is_accelerated, refusal
from trainer_core.checkpoints import PENDING, StagedCheckpoints
from trainer_core.errors import NonfiniteLoss
from trainer_core.loading import loading
from trainer_core.observer import Observer
from trainer_core.plan import batched_order, row_tokens
from trainer_core.reference import TRAINED_ADAPTER
from trainer_core.reference_logps import OWN_COLUMNS
from trainer_core.row_names import AS_NUMBERED, RowNames
from trainer_core.schedule import above_zero
from trainer_core.wording import Message, say

# Codes of what became NaN or infinite, if the rows are known.
_WITH_ROWS = {"loss_not_finite": "loss_not_finite_rows", "logps_not_finite": "logps_not_finite_rows"}


class TokenizedTrainer(StagedCheckpoints):
    """Mixin, to the left of a TRL trainer.

    TRL would render and tokenise rows again, by other rules than generation and comparison use. Here rows arrive with
    `prompt_ids` and the ids of their answers, and stay as they are.
    """

    model: Any
    observer: Observer
    evaluated: Callable[[], dict[str, float | None]] | None = None
    """Computes more metrics at each evaluation, before it is logged, so that early stopping can use them."""
    identity: dict[str, Any] = {}  # noqa: RUF012  # replaced as a whole
    """What must be the same for a run to resume from a checkpoint; saved with it."""
    describe: Callable[[Path, Any], None] = staticmethod(lambda *_: None)
    """Writes a model card beside a checkpoint's weights."""
    savings: Savings
    """Counts the tokens that acceleration saves."""
    warms_up_from_zero = False
    """Whether to warm up as transformers does, for runs that an earlier version started."""
    row_names: RowNames = AS_NUMBERED
    """The names of rows in errors."""
    _rows: Any = ()
    _partners: Any = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.savings = Savings()
        trainer: Any = self
        trainer.data_collator = _WithOwnColumns(trainer.data_collator)
        for model in (trainer.model, getattr(trainer, "ref_model", None)):
            if model is not None:
                model.register_forward_hook(self._check_forward)

    @contextmanager
    def live_reference(self, reference: Any) -> Generator[None]:
        """Uses the reference itself, even if the training rows' log-probabilities were computed before the first step.

        Args:
            reference: lent to a trainer that holds none.
        """
        trainer: Any = self
        held = trainer.ref_model, trainer.precompute_ref_logps
        if isinstance(reference, torch.nn.Module) and reference is not trainer.ref_model:
            lent: Any = reference
            if lent not in trainer.accelerator._models:
                # As TRL does with its own reference; the second puts it under autocast.
                add_fused_lm_head(lent)
                trainer.accelerator.prepare_model(lent, evaluation_mode=True)
                if is_accelerated(trainer.model) and refusal(lent) is None:
                    accelerate(lent, self.savings, trainer.accelerator.autocast, only_log_probs=True)
            trainer.ref_model = lent
        trainer.precompute_ref_logps = False
        try:
            yield
        finally:
            trainer.ref_model, trainer.precompute_ref_logps = held

    def plain_path_reason(self) -> Message | None:
        """Why this trainer's options need TRL's own computation; None if acceleration supports them all."""
        trainer: Any = self
        if getattr(trainer, "padding_free", False):
            return say("plain_padding_free")
        if getattr(trainer, "aux_loss_enabled", False):
            return say("plain_aux_loss")
        return None

    def answer_log_probs(self, model: Any, batch: Any) -> Tensor | None:
        """Log-probabilities of answers to one prompt as the loss gets them, (answers, width - 1); 0 outside the answers.

        Args:
            batch: `input_ids`, `attention_mask` and `labels`, (answers, width) each.

        Returns:
            None if the loss is computed from the logits of a plain forward pass.
        """
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
        return model(**inputs, use_cache=False, fused_lm_head=True).log_probs

    # -- metrics between two log entries, which transformers and TRL lose when a run resumes

    def write_more(self, staged: Path) -> None:
        trainer: Any = self
        pending = {
            "loss": trainer._tr_loss.item(),
            "last_logged_step": trainer._globalstep_last_logged,
            "tokens": getattr(trainer, "_total_train_tokens", 0),
            "metrics": dict(self._collected()),
            "identity": self.identity,
            "tokens_computed": self.savings.computed,
            "tokens_plain": self.savings.plain,
            "batches": self.savings.batches,
        }
        (staged / PENDING).write_text(json.dumps(pending), encoding="utf-8")
        self.describe(staged, trainer.state)

    def read_more(self, checkpoint: Path) -> None:
        """Continues averages from a checkpoint; called when training has begun."""
        trainer: Any = self
        pending = json.loads((checkpoint / PENDING).read_text(encoding="utf-8"))
        trainer._tr_loss += pending["loss"]
        # The loss before the checkpoint belongs to the next log entry, not to the mean over this call's steps.
        trainer._total_loss_scalar = -pending["loss"]
        trainer._globalstep_last_logged = pending["last_logged_step"]
        trainer._total_train_tokens = pending["tokens"]
        self._collected().update(pending["metrics"])
        self.read_counts(checkpoint)

    def read_counts(self, checkpoint: Path) -> None:
        """Adds what the run had computed up to a checkpoint."""
        pending = json.loads((checkpoint / PENDING).read_text(encoding="utf-8"))
        self.savings.computed += pending["tokens_computed"]
        self.savings.computed_before += pending["tokens_computed"]
        self.savings.plain += pending["tokens_plain"]
        for path, count in pending.get("batches", {}).items():
            self.savings.batches[path] += count

    def read_identity(self, checkpoint: Path) -> Any:
        """The identity of the run that wrote a checkpoint."""
        return json.loads((checkpoint / PENDING).read_text(encoding="utf-8")).get("identity")

    def _collected(self) -> dict[str, list[float]]:
        """TRL's metrics of the micro-batches since the last log entry."""
        trainer: Any = self
        return trainer._stored_metrics["train"] if hasattr(trainer, "_stored_metrics") else trainer._metrics["train"]

    # --

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """transformers' schedule with a warm-up that starts above zero; see `trainer_core.schedule`."""
        trainer: Any = self
        is_new = trainer.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, optimizer)  # pyright: ignore[reportAttributeAccessIssue]
        warm_up_steps = trainer.args.get_warmup_steps(num_training_steps)
        is_course = isinstance(scheduler, LambdaLR) and trainer.args.lr_scheduler_type != "constant"
        if is_new and is_course and warm_up_steps and not self.warms_up_from_zero:
            courses = [above_zero(course, warm_up_steps) for course in scheduler.lr_lambdas]
            # Created again, because creating a schedule sets the first step's rate.
            trainer.lr_scheduler = LambdaLR(scheduler.optimizer, courses)
        return trainer.lr_scheduler

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _prepare_inputs(self, inputs: Any) -> Any:
        self._rows = inputs.pop("row", ())
        self._partners = inputs.pop("KL_row", ())
        return super()._prepare_inputs(inputs)  # pyright: ignore[reportAttributeAccessIssue]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        passes = self.savings.passes
        result = super().compute_loss(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if self.model.training:
            # A wrapper can hide that the model is accelerated, so check whether our forward pass ran.
            self.savings.batches["shared_prompt" if self.savings.passes > passes else "plain"] += 1
        loss: Tensor = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss).all():
            raise self._nonfinite("loss_not_finite", [int(row) for row in self._rows], value=str(loss.item()))
        return result

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads as transformers does, but raises `ModelRefused` for missing parts, where it only warns."""
        checkpoint, trained = Path(resume_from_checkpoint), model if model is not None else self.model
        with loading(resume_from_checkpoint, "resume_from_checkpoint"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # pyright: ignore[reportAttributeAccessIssue]
            if not isinstance(trained, PeftModel):
                found = weight_headers.shapes(model_files.weight_files(resume_from_checkpoint))
                weight_headers.check_names(trained, found, resume_from_checkpoint, "resume_from_checkpoint")
                return
        for name in trained.peft_config:
            folder = checkpoint if name == TRAINED_ADAPTER else checkpoint / name
            adapters.check_loaded(trained, str(folder), name)

    def _check_forward(self, module: Any, inputs: Any, outputs: Any) -> None:
        """Finds the exact rows: KTO's mean leaves out rows that are NaN, so its loss alone would not show them."""
        log_probs: Tensor | None = getattr(outputs, "log_probs", None)
        if log_probs is not None:
            self.check_finite(log_probs)

    def check_finite(self, log_probs: Tensor) -> None:
        """Raises `NonfiniteLoss` with the numbers of the rows whose log-probabilities, (rows, tokens), are not finite."""
        broken = ~torch.isfinite(log_probs).all(dim=1)
        if broken.any():
            # A batch of pairs is [chosen, rejected].
            places = sorted({int(place) % max(1, len(self._rows)) for place in broken.nonzero()[:, 0]})
            # KTO also scores a row's prompt with its partner's answer, and either may be broken.
            rows = [int(found[place]) for found in (self._rows, self._partners) for place in places if place < len(found)]
            raise self._nonfinite("logps_not_finite", rows)

    def _nonfinite(self, code: str, rows: list[int], **values: Any) -> NonfiniteLoss:
        trainer: Any = self
        step = trainer.state.global_step + trainer.model.training
        names = self.row_names
        details = [names.detail("row", say("row_not_finite"), row) for row in rows]
        if rows:
            sentence = say(_WITH_ROWS[code], step=step, rows=[str(names.short(row)) for row in rows], **values)
        else:
            sentence = say(code, step=step, **values)
        return NonfiniteLoss(sentence, details)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        self.observer.phase("evaluating")
        loop = super().evaluation_loop  # pyright: ignore[reportAttributeAccessIssue]
        output = loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.evaluated:
            extra = {f"{metric_key_prefix}_{name}": value for name, value in self.evaluated().items()}
            output.metrics.update({name: value for name, value in extra.items() if value is not None})
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        results: dict[str, Any] = super().evaluate(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        self.observer.phase("training")
        return results

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: TRL's card would name paths on this machine. `trainer_core.model_card` writes one instead."""


class ReshuffledBatches:
    """Mixin for trainers on pairs: the plan's order in the first epoch, a new order of the same kind in each later one."""

    args: Any
    train_dataset: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(train_dataset)  # pyright: ignore[reportAttributeAccessIssue]
        # Only the id columns: a row may hold much more.
        ids = rows.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
        return EpochOrder([row_tokens(row) for row in ids], self.args.per_device_train_batch_size, self.args.seed)


class EpochOrder(Sampler[int]):
    """Indices of planned rows, by epoch: a function of seed and epoch alone, so that a resumed run sees the same."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        if self._epoch == 0:
            return iter(range(len(self._lengths)))
        rng = random.Random(f"{self._seed} {self._epoch}")
        return iter(batched_order(self._lengths, self._batch_size, rng))


class _WithOwnColumns:
    """A collator that also passes on the rows' numbers and weights, which TRL's collators drop."""

    def __init__(self, collator: Any) -> None:
        self._collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        if get_worker_info() is not None:
            # A TERM sent to all of a run's processes asks for a checkpoint, and must not kill the data loader.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        own = {name: torch.tensor([example[name] for example in examples]) for name in OWN_COLUMNS if name in examples[0]}
        return {**self._collator(examples), **own}
