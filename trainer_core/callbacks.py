"""What watches a run: reports to an `Observer`, looks for warning signs, and stops early."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trainer_core.config import TrainingSettings
from trainer_core.errors import NonfiniteLoss
from trainer_core.guards import History, signs
from trainer_core.observer import Observer
from trainer_core.wording import say

# Bookkeeping of transformers, not metrics of a run.
_NOT_METRICS = {"epoch", "step", "total_flos", "num_tokens", "train_runtime", "eval_runtime", "num_input_tokens_seen"}


class ObserverCallback(TrainerCallback):
    """Reports a run's events to an `Observer`, warns of bad signs, and ends a run whose loss is not finite.

    Args:
        nullable: metrics that some batches cannot have; they are then reported as None.
    """

    def __init__(self, observer: Observer, nullable: Sequence[str] = ()) -> None:
        self._observer, self._nullable = observer, nullable
        self._warned: set[str] = set()
        self.stopped = False
        self.seconds, self.steps = 0.0, 0
        """Seconds spent on this process's optimizer steps, without evaluations and checkpoints."""
        self._step_began: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step_began = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stopped = False
        self._observer.phase("training")
        self._observer.progress(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._step_began is not None:
            self.seconds += time.monotonic() - self._step_began
            self.steps += 1
        self._observer.progress(state.global_step, state.max_steps)
        if state.global_step < state.max_steps and self._observer.should_stop():
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._observer.alive()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._observer.alive()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logged = logs or {}
        # Under fp16 the gradient scaler skips steps whose gradient overflows; that is how it finds its scale.
        for name in ("loss",) if args.fp16 else ("loss", "grad_norm"):
            if not math.isfinite(logged.get(name, 0.0)):
                found = {"value": str(logged[name]), "step": state.global_step}
                raise NonfiniteLoss(say("metric_not_finite", name=name, **found))
        values = metric_values(logged, self._nullable)
        if values:
            self._observer.metrics(state.global_step, values)
        for sign in signs(state.log_history):
            if sign.code not in self._warned:
                self._warned.add(sign.code)
                self._observer.warning(sign.code, sign.message)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._observer.checkpoint(state.global_step, path)


class Resumed(TrainerCallback):
    """Calls back once, when a resumed run has begun and before its first step."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        self._go_on: Callable[[], None] | None = go_on

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._go_on:
            self._go_on()
        self._go_on = None


class Completed(TrainerCallback):
    """Calls back at the end of a run that did not fail."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell()


def metric_values(logged: dict[str, Any], nullable: Sequence[str]) -> dict[str, float | None]:
    """The metrics of a log entry. NaN, infinity, and metrics that batches of a single label cannot have become None."""
    names = [name for name, value in logged.items() if isinstance(value, int | float) and name not in _NOT_METRICS]
    values = {name: float(logged[name]) for name in names if not name.endswith("_per_second")}
    missing: dict[str, float | None] = {}
    if "loss" in values:
        missing = {name: None for name in nullable if not name.startswith("eval_")}
    elif "eval_loss" in values:
        missing = {f"eval_{name.removeprefix('eval_')}": None for name in nullable}
    return missing | {name: value if math.isfinite(value) else None for name, value in values.items()}


class EarlyStopping(TrainerCallback):
    """Stops a run whose validation metric no longer improves, and keeps the checkpoint of its best step.

    It reads only the trainer's log history, so that a resumed run continues counting where it stopped.

    Args:
        protect: called with the best step, whose checkpoint must be kept.
    """

    def __init__(self, settings: TrainingSettings, protect: Callable[[int | None], None]) -> None:
        self._name = f"eval_{settings.early_stopping_metric}"
        self._sign = 1.0 if settings.early_stopping_metrics[settings.early_stopping_metric] else -1.0
        self._threshold = settings.early_stopping_threshold
        self._patience = settings.early_stopping_patience
        self._protect = protect

    def best(self, history: History) -> tuple[int | None, int]:
        """(step of the best evaluation after step 0, evaluations since it), from a log history."""
        best_step, best_value, waited = None, -math.inf, 0
        for entry in history:
            if "eval_loss" not in entry or entry["step"] == 0:
                continue
            value = self._sign * entry.get(self._name, -self._sign * math.inf)
            if value > best_value + (self._threshold if best_step is not None else 0):
                best_step, best_value, waited = entry["step"], value, 0
            else:
                waited += 1
        return best_step, waited

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._protect(self.best(state.log_history)[0])

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, waited = self.best(state.log_history)
        self._protect(step)
        if step == state.global_step:
            control.should_save = True
        elif self._patience and waited >= self._patience:
            control.should_training_stop = True
