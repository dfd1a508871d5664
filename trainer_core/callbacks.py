"""What training tells while it runs, and how it is asked to stop.

An `Observer` is the port: the library's default prints warnings and is otherwise silent, the service's reports to a job.
"""

import math
import warnings
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from trainer_core.errors import NonfiniteLoss

Phase = Literal["preparing", "loading", "training", "evaluating", "saving"]
# Bookkeeping of transformers that is no metric of a training.
_NOT_METRICS = {"epoch", "total_flos", "num_tokens", "train_runtime", "eval_runtime", "num_input_tokens_seen"}


class Observer:
    """Receives what happens. Override what you need; `should_stop` is asked after every optimizer step."""

    def phase(self, phase: Phase) -> None:
        """A new phase began."""

    def progress(self, step: int, total_steps: int) -> None:
        """`step` optimizer steps of `total_steps` are done."""

    def metrics(self, step: int, values: dict[str, float | None]) -> None:
        """Metric values at a step. A value that is NaN or infinite arrives as None."""

    def warning(self, code: str, message: str) -> None:
        """Something is probably not what the user wanted."""
        warnings.warn(message, stacklevel=2)

    def checkpoint(self, step: int, path: Path) -> None:
        """A complete checkpoint was published."""

    def should_stop(self) -> bool:
        """True: save a checkpoint at this step boundary and leave."""
        return False


class ObserverCallback(TrainerCallback):
    """Passes the trainer's life on to an `Observer`, and guards the loss."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
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
