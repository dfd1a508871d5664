"""What a run will probably do to its model, from its learning rates alone. Torch-free.

AdamW moves each weight by about the learning rate per step, whatever the gradient. The sum of the learning rates over all
steps, times LoRA's scaling, therefore says how far a model can move. The bounds come from measured runs of the models that
shipped (`docs/metrics.md`); for other models they are a guess.
"""

import math
from bisect import bisect_left
from dataclasses import asdict, dataclass
from typing import Any

from trainer_core.config import TrainingSettings
from trainer_core.effect import BOUNDS, HALF_BOUNDS, Verdict
from trainer_core.observer import Observer
from trainer_core.schedule import learning_rate_sum
from trainer_core.wording import Message, rounded, say

# By `use_lora`: sums below the first bound hardly change the shipped model, and sums above the second break it. So does a
# single step above the third. The bounds apply to the rates times LoRA's scaling.
_BOUNDS = {True: (3.2e-3, 0.32, 0.03), False: (5.1e-5, 0.098, 0.008)}
# KL grows as the square of the movement.
_HALF = math.sqrt(HALF_BOUNDS.hardly_kl / BOUNDS.hardly_kl)
# With fewer weights than in the measured runs, a model moves less than the learning rates suggest.
_LEAST_RANK = 4
_MOST_EPOCHS = 1000


@dataclass(frozen=True)
class Forecast:
    """A forecast of a run's effect.

    Attributes:
        effect: None if it cannot be forecast.
        learning_rate_sum: sum of the learning rates of all steps, after the cap.
        lora_scaling: LoRA's factor on that sum; 1 if all weights train.
        hardly_below, collapsed_above: bounds on their product.
        basis: the runs that the bounds come from.
    """

    effect: Verdict | None
    learning_rate_sum: float
    lora_scaling: float
    hardly_below: float
    collapsed_above: float
    basis: str

    @property
    def movement(self) -> float:
        """What the bounds apply to."""
        return self.learning_rate_sum * self.lora_scaling

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def forecast(settings: TrainingSettings, steps: int, *, is_half: bool = False) -> Forecast:
    """The forecast for a run of this many optimizer steps.

    Args:
        is_half: whether the run computes in bf16 or fp16.
    """
    hardly, collapsed, single = _BOUNDS[settings.use_lora]
    scaling = settings.lora_scaling
    total = learning_rate_sum(settings, steps)
    # At the learning rate at which one step is as large as a model can bear.
    collapsed = min(collapsed, single * total / settings.effective_learning_rate)
    if is_half and settings.use_lora:
        hardly *= _HALF
    effect: Verdict = "changed"
    if total * scaling < hardly:
        effect = "hardly_changed"
    elif total * scaling > collapsed:
        effect = "collapsed"
    # A continued adapter has its own scaling, and its weights make the same step matter more.
    is_known = not settings.adapter_name and (effect == "hardly_changed" or _is_measured(settings))
    known = effect if is_known else None
    return Forecast(known, total, scaling, hardly, collapsed, "runs of the bundled models")


def _is_measured(settings: TrainingSettings) -> bool:
    """Whether the measured runs show when such a run breaks a model."""
    is_narrow = settings.use_lora and (settings.lora_r < _LEAST_RANK or settings.lora_target_modules != "all-linear")
    return not (is_narrow or settings.use_dora or settings.optim == "adafactor")


def warn(settings: TrainingSettings, steps: int, steps_an_epoch: int, observer: Observer, *, is_half: bool = False) -> None:
    """Warns if a run will hardly change the model, or will probably break it, and names a remedy.

    Args:
        steps, steps_an_epoch: optimizer steps.
        is_half: whether the run computes in bf16 or fp16.
    """
    found = forecast(settings, steps, is_half=is_half)
    total = say("forecast_total", steps=steps, sum=rounded(found.learning_rate_sum, 2))
    if settings.use_lora:
        total = say("forecast_total_scaled", **total.params, scaled=rounded(found.movement, 2))
    if found.effect == "hardly_changed":
        ways = _more(settings, found, steps_an_epoch)
        observer.warning("hardly_changes", say("hardly_changes", total=total, needed=found.hardly_below, ways=ways))
    elif found.effect == "collapsed":
        rate = _rounded(settings.effective_learning_rate * found.collapsed_above / found.movement, up=False)
        observer.warning("may_collapse", say("may_collapse", total=total, limit=found.collapsed_above, rate=rate))


def _more(settings: TrainingSettings, found: Forecast, steps_an_epoch: int) -> list[Message]:
    """The remedies: more steps, or a higher learning rate."""
    ways: list[Message] = []
    most = _MOST_EPOCHS * steps_an_epoch
    needed = bisect_left(
        range(most + 1), found.hardly_below, key=lambda n: learning_rate_sum(settings, n) * found.lora_scaling
    )
    if needed <= most:
        epochs = math.ceil(needed / steps_an_epoch)
        ways.append(say("way_epochs", n=epochs) if settings.max_steps is None else say("way_steps", steps=needed))
    rate = _rounded(settings.effective_learning_rate * found.hardly_below / found.movement, up=True)
    if rate <= 1:
        cap = settings.learning_rate_cap
        ways.append(say("way_rate_uncapped" if cap is not None and rate > cap else "way_rate", rate=rate))
    return ways or [say("way_longer")]


def _rounded(value: float, *, up: bool) -> float:
    """Rounds to one digit, as people write learning rates."""
    size = 10.0 ** math.floor(math.log10(value))
    # Divided first: 3e-05 / 1e-05 is not quite 3.
    digits = round(value / size, 9)
    return float(f"{(math.ceil(digits) if up else math.floor(digits)) * size:.1g}")
