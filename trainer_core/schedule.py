"""The learning rate of each optimizer step. Torch-free.

Warm-up starts above zero: of w warm-up steps, step i (from 0) trains at peak · (i + 1) / (w + 1). transformers starts at
zero, so its first step changes nothing, and a run of one step trains nothing. After warm-up, the schedule is transformers'.
"""

import math
from collections.abc import Callable

from trainer_core.config import Interval, TrainingSettings

Course = Callable[[int], float]
"""Maps an optimizer step (from 0) to a share of the peak learning rate."""

WARM_UP = "above zero"
"""How a checkpoint records its run's warm-up. Checkpoints of earlier versions record nothing: they warm up from zero."""


def above_zero(course: Course, warm_up_steps: int) -> Course:
    """The given course, with a warm-up that starts above zero."""
    return lambda step: (step + 1) / (warm_up_steps + 1) if step < warm_up_steps else course(step)


def learning_rate_sum(settings: TrainingSettings, steps: int) -> float:
    """The sum of the learning rates of all steps of a run.

    w warm-up steps add up to peak · w / 2; the first i of them add up to peak · i (i + 1) / (2 (w + 1)). Over the n steps
    after them, the linear and the cosine schedule fall from the peak to just above 0, and each adds up to
    peak · (n + 1) / 2. With a floor f, the cosine adds up to peak · (f n + (1 - f) (n + 1) / 2).
    """
    warm_up = warm_up_steps(settings, steps)
    risen = min(warm_up, steps)
    rise = risen * (risen + 1) / (2 * (warm_up + 1))
    after = steps - risen
    fall = float(after)
    if settings.lr_scheduler_type in ("linear", "cosine", "cosine_with_min_lr") and after:
        floor = settings.min_lr_rate or 0.0
        fall = floor * after + (1 - floor) * (after + 1) / 2
    return settings.effective_learning_rate * (rise + fall)


def warm_up_steps(settings: TrainingSettings, steps: int) -> int:
    """Warm-up steps of a run of this many steps. `warmup_steps` may be greater."""
    if settings.lr_scheduler_type == "constant":
        return 0
    return math.ceil(settings.warmup_ratio * steps) if settings.warmup_steps is None else settings.warmup_steps


def interval(asked: Interval, steps: int, steps_an_epoch: int) -> int:
    """Optimizer steps between two evaluations or checkpoints.

    A share is rounded up, as in transformers. An epoch also becomes a number of steps: transformers' own epoch strategies
    would evaluate when a run is stopped inside an epoch, and a resumed run would have an extra point.

    Args:
        asked: `eval_steps` or `save_steps`.
        steps, steps_an_epoch: optimizer steps.
    """
    if asked == "epoch":
        return steps_an_epoch
    return math.ceil(asked * steps) if asked < 1 else int(asked)
