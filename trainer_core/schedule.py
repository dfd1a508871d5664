"""The learning rate of each optimizer step. Torch-free.

Warm-up starts above zero: of w warm-up steps, step i (from 0) trains at peak · (i + 1) / (w + 1). transformers starts at
zero, so that its first step changes nothing, and a run of one step is no training. After warm-up the course is transformers'.
"""

import math
from collections.abc import Callable

from trainer_core.config import TrainingSettings

Course = Callable[[int], float]
"""From an optimizer step (from 0) to a share of the peak learning rate."""

WARM_UP = "above zero"
"""What a checkpoint says of the warm-up that its run follows. One that says nothing is an earlier version's: from zero."""


def above_zero(course: Course, warm_up_steps: int) -> Course:
    """A course whose warm-up starts above zero and which is otherwise the given one."""
    return lambda step: (step + 1) / (warm_up_steps + 1) if step < warm_up_steps else course(step)


def warm_up_steps(settings: TrainingSettings, steps: int) -> int:
    """Optimizer steps in which the learning rate rises."""
    if settings.lr_scheduler_type == "constant":
        return 0
    return math.ceil(settings.warmup_ratio * steps)


def learning_rates(settings: TrainingSettings, steps: int) -> list[float]:
    """The learning rate of each optimizer step of a run of so many."""
    warm_up = warm_up_steps(settings, steps)
    left = max(1, steps - warm_up)

    def falling(step: int) -> float:
        progress = (step - warm_up) / left
        if settings.lr_scheduler_type == "linear":
            return 1 - progress
        return 0.5 * (1 + math.cos(math.pi * progress)) if settings.lr_scheduler_type == "cosine" else 1.0

    course = above_zero(falling, warm_up)
    return [settings.effective_learning_rate * course(step) for step in range(steps)]
