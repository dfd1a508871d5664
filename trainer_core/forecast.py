"""What a run will probably do to its model, from its learning rates alone. Torch-free.

AdamW moves each weight by about the learning rate at each step, whatever the gradient, so that the sum of the learning rates
over the steps, times LoRA's scaling, says how far a model can move. The bounds come from measured runs of the shipped model
(`docs/metrics.md`): for another model it is a guess.
"""

import math
from bisect import bisect_left
from dataclasses import asdict, dataclass
from typing import Any

from trainer_core.config import TrainingSettings
from trainer_core.effect import Verdict
from trainer_core.observer import Observer
from trainer_core.schedule import learning_rate_sum

# By whether LoRA trains: sums below the first hardly change the shipped model, sums above the second break it.
_BOUNDS = {True: (3.2e-3, 0.32), False: (5.1e-5, 0.098)}
_MOST_EPOCHS = 1000


@dataclass(frozen=True)
class Forecast:
    """A forecast. Rates and bounds are sums over the steps.

    Attributes:
        effect: None where nothing is known.
        learning_rate_sum: of the learning rates of all steps, after the cap.
        lora_scaling: what it counts for; 1 where all weights train.
        hardly_below, collapsed_above: bounds of their product.
        basis: what the bounds come from.
    """

    effect: Verdict | None
    learning_rate_sum: float
    lora_scaling: float
    hardly_below: float
    collapsed_above: float
    basis: str

    @property
    def movement(self) -> float:
        """What the bounds are about."""
        return self.learning_rate_sum * self.lora_scaling

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def forecast(settings: TrainingSettings, steps: int) -> Forecast:
    """The forecast of a run of so many optimizer steps."""
    hardly, collapsed = _BOUNDS[settings.use_lora]
    scaling = settings.lora_alpha / settings.lora_r if settings.use_lora else 1.0
    total = learning_rate_sum(settings, steps)
    effect: Verdict = "changed"
    if total * scaling < hardly:
        effect = "hardly_changed"
    elif total * scaling > collapsed:
        effect = "collapsed"
    # An adapter that trains on has its own scaling, and weights that make the same step matter more.
    known = None if settings.adapter_name else effect
    return Forecast(known, total, scaling, hardly, collapsed, "runs of tafdil/tiny-arabic-qwen")


def warn(settings: TrainingSettings, steps: int, steps_an_epoch: int, observer: Observer) -> None:
    """Says so when a run will hardly change the model, or break it, and names what would change that.

    Args:
        steps, steps_an_epoch: optimizer steps.
    """
    found = forecast(settings, steps)
    scaled = f" (times LoRA's scaling: {found.movement:.2g})" if settings.use_lora else ""
    total = f"the learning rates of its {steps} steps add up to {found.learning_rate_sum:.2g}{scaled}"
    if found.effect == "hardly_changed":
        observer.warning(
            "hardly_changes",
            f"this will hardly change the model: {total}, and it takes about {found.hardly_below:g}. "
            + _more(settings, found, steps, steps_an_epoch),
        )
    elif found.effect == "collapsed":
        rate = _rounded(settings.effective_learning_rate * found.collapsed_above / found.movement, up=False)
        observer.warning(
            "may_collapse",
            f"this will probably break the model: {total}, and the shipped model broke above {found.collapsed_above:g}. Set "
            f"learning_rate to {rate:g} or less, or train for fewer steps.",
        )


def _more(settings: TrainingSettings, found: Forecast, steps: int, steps_an_epoch: int) -> str:
    """What would change the model: more steps, or a higher rate."""
    ways: list[str] = []
    most = _MOST_EPOCHS * steps_an_epoch
    needed = bisect_left(
        range(most + 1), found.hardly_below, key=lambda n: learning_rate_sum(settings, n) * found.lora_scaling
    )
    if needed <= most:
        epochs = math.ceil(needed / steps_an_epoch)
        ways.append(
            f"train for about {epochs} epochs at this rate" if settings.max_steps is None else f"set max_steps to {needed}"
        )
    rate = _rounded(settings.effective_learning_rate * found.hardly_below / found.movement, up=True)
    if rate <= 1:
        cap = settings.learning_rate_cap
        lifted = " with learning_rate_cap: null" if cap is not None and rate > cap else ""
        ways.append(f"set learning_rate to {rate:g} or more{lifted}")
    text = ", or ".join(ways) or "it takes more steps"
    return f"{text[0].upper()}{text[1:]}."


def _rounded(value: float, *, up: bool) -> float:
    """To one digit, so that a rate is one that people write."""
    size = 10.0 ** math.floor(math.log10(value))
    # Divided first: 3e-05 / 1e-05 is not quite 3.
    digits = round(value / size, 9)
    return float(f"{(math.ceil(digits) if up else math.floor(digits)) * size:.1g}")
