"""The learning rate of each step: above zero from the first on, then transformers' course."""

import math
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from trainer_core import IPOConfig
from trainer_core.schedule import above_zero, learning_rates

PEAK = 2e-3
KINDS = ("linear", "cosine", "constant_with_warmup", "constant")


def settings(**fields: Any) -> IPOConfig:
    return IPOConfig(model_name="m", dataset_path="d", learning_rate=PEAK, learning_rate_cap=None, **fields)


def of_transformers(kind: str, steps: int, warm_up: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=warm_up, num_training_steps=steps)
    return [PEAK * scheduler.lr_lambdas[0](step) for step in range(steps)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "ratio"), [(1, 0.1), (2, 0.1), (10, 0.1), (10, 0.5), (37, 0.33), (20, 0.0), (3, 0.99)])
def test_it_rises_above_zero_and_then_follows_transformers(kind: str, steps: int, ratio: float) -> None:
    warm_up = 0 if kind == "constant" else math.ceil(ratio * steps)
    rates = learning_rates(settings(lr_scheduler_type=kind, warmup_ratio=ratio), steps)
    assert len(rates) == steps
    assert min(rates) > 0, "each step trains"
    assert rates[:warm_up] == pytest.approx([PEAK * (step + 1) / (warm_up + 1) for step in range(warm_up)])
    assert rates[warm_up:] == pytest.approx(of_transformers(kind, steps, warm_up)[warm_up:])


def test_a_run_of_one_step_trains_at_half_the_peak() -> None:
    """w = ceil(0.1 · 1) = 1, so the rate is peak · 1 / 2."""
    assert learning_rates(settings(), 1) == [PEAK / 2]


def test_the_rise_ends_one_step_below_the_peak() -> None:
    course = above_zero(lambda step: 1.0, 4)
    assert [course(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_the_cap_is_the_peak() -> None:
    capped = settings(lr_scheduler_type="constant").model_copy(update={"learning_rate_cap": 5e-7})
    assert learning_rates(capped, 2) == [5e-7, 5e-7]
