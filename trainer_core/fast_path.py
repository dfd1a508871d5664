"""How a run computes its numbers: chosen from its config, model, data and memory, and recorded in its metadata."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch

from trainer_core import memory, reference_logps
from trainer_core.acceleration import Savings, accelerate, refusal, release
from trainer_core.config import PreferenceConfig
from trainer_core.estimates import OPTIMIZER_BYTES
from trainer_core.models import DTYPES, Precision, free_memory
from trainer_core.observer import Observer
from trainer_core.plan import batch_tokens
from trainer_core.plan import fingerprint as fingerprint_of_plan
from trainer_core.row_rules import Row
from trainer_core.wording import say


class FastPath:
    """The paths of one run.

    Args:
        columns: TRL's names for a row's two reference log-probabilities; empty if the loss has no reference.
        reference_identity: everything that decides the reference's answers; called only if a result is stored under it.
    """

    def __init__(
        self,
        config: PreferenceConfig,
        observer: Observer,
        columns: tuple[str, ...],
        reference_identity: Callable[[], dict[str, Any]],
    ) -> None:
        self._config, self._observer = config, observer
        self._columns, self._reference_identity = columns, reference_identity
        self._savings: Savings | None = None
        self._plain_because: dict[str, str] = {}
        self._reference_passes: str | None = None
        self._checkpointing: memory.Decision | None = None

    def metadata(self) -> dict[str, Any]:
        """Which path ran and why, and how many tokens the layers computed compared with the plain path.

        `path` comes from the counts in `batches`: None before the first step, `mixed` if both ran, for example after a
        resume on another path.
        """
        savings = self._savings or Savings()
        calls = savings.refused_calls
        ran = [path for path, count in savings.batches.items() if count]
        return {
            "path": "mixed" if len(ran) > 1 else next(iter(ran), None),
            "batches": savings.batches,
            "plain_because": self._plain_because | ({"calls": "; ".join(sorted(calls))} if calls else {}),
            "reference_passes": self._reference_passes,
            "gradient_checkpointing": self._checkpointing.as_dict() if self._checkpointing else None,
            "tokens_computed": savings.computed,
            "tokens_plain": savings.plain,
        }

    def checkpointing(self, model: Any, rows: Sequence[Row], precision: Precision) -> bool:
        """Whether activations are recomputed in the backward pass instead of stored.

        Args:
            rows: in training order.
        """
        self._checkpointing = self._decide(model, rows, precision)
        return self._checkpointing.checkpointing

    def _decide(self, model: Any, rows: Sequence[Row], precision: Precision) -> memory.Decision:
        config = self._config
        if config.gradient_checkpointing != "auto":
            return memory.Decision(config.gradient_checkpointing, say("config_says"))
        try:
            shape = memory.Shape.of(model.config.to_dict())
        except KeyError as error:
            return memory.Decision(True, say("no_estimate", field=str(error.args[0])))
        is_packed = config.plain_path_because is None and refusal(model) is None
        size = config.per_device_train_batch_size
        tokens = max(batch_tokens(rows[start : start + size], is_packed) for start in range(0, len(rows), size))
        kept = memory.activation_bytes(shape, tokens, torch.finfo(DTYPES[precision]).bits // 8, has_adapters=config.use_lora)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        # float32 gradients and the optimizer's state are allocated after the first forward pass.
        return memory.decide(kept + (4 + OPTIMIZER_BYTES[config.optim]) * trained, free_memory())

    def take(self, trainer: Any, model: Any, reference: Any) -> None:
        """Puts each model of a TRL trainer on the fast path if it allows that, and otherwise records why not.

        Args:
            reference: a separate model; anything else is part of `model`.
        """
        self._savings, self._plain_because = trainer.savings, {}
        models = {"model": model} | ({"reference": reference} if isinstance(reference, torch.nn.Module) else {})
        for name, one in models.items():
            reason = self._config.plain_path_because or refusal(one) or trainer.plain_path_reason()
            if reason is None:
                # TRL has already put the reference under autocast; ours replaces that.
                accelerate(one, trainer.savings, trainer.accelerator.autocast, only_log_probs=name == "reference")
                continue
            release(one)
            self._plain_because[name] = reason
            if self._config.acceleration != "off":
                self._observer.warning("plain_path", say("plain_path", kind=say(f"kind.{name}"), reason=reason))

    def ask_reference_once(self, trainer: Any, rows: int, precision: Precision) -> None:
        """Skips the reference's pass at each step if rows train more than once, or its results are already known.

        Args:
            rows: training rows.
        """
        self._reference_passes = "every step" if self._columns else None
        if self._config.acceleration == "off" or not self._columns or trainer.precompute_ref_logps:
            return
        sizes = trainer.args.per_device_train_batch_size, trainer.args.per_device_eval_batch_size
        caches = [self._cache(size, precision) for size in sizes]
        train = self._known(trainer.train_dataset, caches[0])
        if train is None and self._passes(rows) <= 1:
            return
        self._reference_passes = "once" if train is None else "known before"
        for name, size, cache in zip(("train_dataset", "eval_dataset"), sizes, caches, strict=True):
            dataset = getattr(trainer, name)
            if dataset is None:
                continue
            columns = train if train and name == "train_dataset" else self._known(dataset, cache)
            if columns is None:
                self._observer.phase("reference")
                columns = reference_logps.compute(trainer, dataset, self._columns, size, self._observer.alive)
                if cache:
                    cache.store(fingerprint_of_plan(dataset), columns)
            setattr(trainer, name, reference_logps.with_columns(dataset, columns))
        trainer.precompute_ref_logps = True

    def _passes(self, rows: int) -> float:
        """How many times a row trains."""
        config = self._config
        if config.max_steps is None:
            return config.num_train_epochs
        return config.max_steps * config.per_device_train_batch_size * config.gradient_accumulation_steps / rows

    def _known(self, dataset: Any, cache: reference_logps.Cache | None) -> reference_logps.Columns | None:
        if cache is None:
            return None
        return cache.load(fingerprint_of_plan(dataset))

    def _cache(self, batch_size: int, precision: Precision) -> reference_logps.Cache | None:
        """The cache for this reference's results in batches of a size; None if the config names no directory."""
        files = self._config.file_cache()
        if files is None:
            return None
        identity = {
            "what": "log-probabilities",
            "columns": self._columns,
            "reference": self._reference_identity(),
            "precision": precision,
            "plain path": sorted(self._plain_because),
            "batch size": batch_size,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "versions": [version(package) for package in ("torch", "transformers", "trl", "peft")],
        }
        return reference_logps.Cache(files, identity)
