"""The learning rate of each step: above zero from the first on, then transformers' course."""

import math
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from tests.training import learning_rates
from trainer_core import IPOConfig
from trainer_core.schedule import above_zero, interval, learning_rate_sum

PEAK = 2e-3
FLOOR = 0.2
KINDS = ("linear", "cosine", "cosine_with_min_lr", "constant_with_warmup", "constant")


def settings(**fields: Any) -> IPOConfig:
    if fields.get("lr_scheduler_type") == "cosine_with_min_lr":
        fields = {"min_lr_rate": FLOOR, **fields}
    return IPOConfig(model_name="m", dataset_path="d", learning_rate=PEAK, **{"learning_rate_cap": None, **fields})


def course_of_transformers(kind: str, steps: int, warm_up: int) -> Any:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    floor = {"scheduler_specific_kwargs": {"min_lr_rate": FLOOR}} if kind == "cosine_with_min_lr" else {}
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=warm_up, num_training_steps=steps, **floor)
    return scheduler.lr_lambdas[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "warm_up"), [(1, 1), (2, 1), (10, 1), (10, 5), (37, 13), (20, 0), (3, 3)])
def test_it_rises_above_zero_and_then_follows_transformers(kind: str, steps: int, warm_up: int) -> None:
    plain = course_of_transformers(kind, steps, warm_up)
    course = above_zero(plain, warm_up)
    shares = [course(step) for step in range(steps)]
    assert shares[:warm_up] == pytest.approx([(step + 1) / (warm_up + 1) for step in range(warm_up)])
    assert shares[warm_up:] == [plain(step) for step in range(warm_up, steps)]
    assert min(shares) > 0, "each step trains"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "ratio"), [(1, 0.1), (2, 0.1), (10, 0.1), (10, 0.5), (37, 0.33), (20, 0.0), (3, 0.99)])
def test_the_sum_is_that_of_all_steps(kind: str, steps: int, ratio: float) -> None:
    chosen = settings(lr_scheduler_type=kind, warmup_ratio=ratio)
    assert learning_rate_sum(chosen, steps) == pytest.approx(sum(learning_rates(chosen, steps)))


@pytest.mark.parametrize("kind", KINDS[:-1])
@pytest.mark.parametrize(("steps", "warm_up"), [(10, 0), (10, 3), (10, 10), (10, 25), (1, 100)])
def test_the_sum_follows_a_warm_up_in_steps(kind: str, steps: int, warm_up: int) -> None:
    """Also one that is longer than the run, which then never reaches the peak."""
    chosen = settings(lr_scheduler_type=kind, warmup_steps=warm_up)
    assert learning_rate_sum(chosen, steps) == pytest.approx(sum(learning_rates(chosen, steps)))


def test_the_floor_is_where_the_cosine_ends() -> None:
    assert learning_rates(settings(lr_scheduler_type="cosine_with_min_lr"), 10_000)[-1] == pytest.approx(
        FLOOR * PEAK, rel=1e-4
    )


@pytest.mark.parametrize(
    ("asked", "steps", "steps_an_epoch", "expected"),
    [(500, 9, 3, 500), (0.1, 100, 7, 10), (0.1, 101, 7, 11), (0.999, 1, 1, 1), ("epoch", 90, 7, 7)],
)
def test_an_interval_is_a_number_of_steps(asked: Any, steps: int, steps_an_epoch: int, expected: int) -> None:
    """A share as transformers rounds it: up."""
    assert interval(asked, steps, steps_an_epoch) == expected


def test_the_sum_of_very_many_steps_costs_nothing() -> None:
    assert math.isclose(learning_rate_sum(settings(), 2**31 - 1), PEAK * 2**30, rel_tol=1e-6)


def test_a_run_of_one_step_trains_at_half_the_peak() -> None:
    """w = ceil(0.1 · 1) = 1, so the rate is peak · 1 / 2."""
    assert learning_rates(settings(), 1) == [PEAK / 2]
    assert learning_rate_sum(settings(), 1) == PEAK / 2


def test_the_cap_is_the_peak() -> None:
    assert learning_rate_sum(settings(lr_scheduler_type="constant", learning_rate_cap=5e-7), 2) == 1e-6
