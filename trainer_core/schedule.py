"""The learning rate of each optimizer step. Torch-free.

Warm-up starts above zero: of w warm-up steps, step i (from 0) trains at peak · (i + 1) / (w + 1). transformers starts at
zero, so its first step changes nothing, and a run of one step trains nothing. After warm-up the schedule is transformers'.
"""

import math
from collections.abc import Callable

from trainer_core.config import TrainingSettings

Course = Callable[[int], float]
"""From an optimizer step (from 0) to a share of the peak learning rate."""

WARM_UP = "above zero"
"""How a checkpoint records its run's warm-up. Checkpoints of earlier versions record nothing: they warm up from zero."""


def above_zero(course: Course, warm_up_steps: int) -> Course:
    """The given course, with a warm-up that starts above zero."""
    return lambda step: (step + 1) / (warm_up_steps + 1) if step < warm_up_steps else course(step)


def learning_rate_sum(settings: TrainingSettings, steps: int) -> float:
    """The learning rates of all steps of a run, added up.

    w warm-up steps add up to peak · w / 2. Over the n steps after them, the linear and the cosine schedule fall from the
    peak to just above 0, and each adds up to peak · (n + 1) / 2.
    """
    is_constant = settings.lr_scheduler_type == "constant"
    warm_up = 0 if is_constant else math.ceil(settings.warmup_ratio * steps)
    after = steps - warm_up
    falls = settings.lr_scheduler_type in ("linear", "cosine")
    share = warm_up / 2 + ((after + 1) / 2 if falls and after else after)
    return settings.effective_learning_rate * share
