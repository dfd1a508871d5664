"""The trainer's side of an `Observer`: passes the trainer's life on, and guards the loss."""

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trainer_core.errors import NonfiniteLoss
from trainer_core.observer import Observer

# Bookkeeping of transformers that is no metric of a training.
_NOT_METRICS = {"epoch", "total_flos", "num_tokens", "train_runtime", "eval_runtime", "num_input_tokens_seen"}


class ObserverCallback(TrainerCallback):
    """Passes the trainer's life on to an `Observer`, and guards the loss."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stopped = False
        self._observer.phase("training")
        self._observer.progress(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._observer.progress(state.global_step, state.max_steps)
        if state.global_step < state.max_steps and self._observer.should_stop():
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        values = {name: value for name, value in (logs or {}).items() if _is_metric(name, value)}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values.get(name, 0.0)):
                raise NonfiniteLoss(f"{name} became {values[name]} at step {state.global_step}")
        if values:
            finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
            self._observer.metrics(state.global_step, finite)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._observer.checkpoint(state.global_step, path)


def _is_metric(name: str, value: Any) -> bool:
    return isinstance(value, int | float) and name not in _NOT_METRICS and not name.endswith("_per_second")
