"""The forecast of a run's effect from its learning rates, and the advice that comes with it."""

import re
from typing import Any

import pytest

from tafdil.demo import SPECS
from tests.fakes import RecordingObserver
from tests.training import CONFIGS, METHODS
from trainer_core.forecast import forecast, warn


def settings(method: str = "ipo", **fields: Any) -> Any:
    return CONFIGS[method](model_name="m", dataset_path="d", **fields)


def warned(chosen: Any, steps: int, steps_an_epoch: int) -> dict[str, str]:
    observer = RecordingObserver()
    warn(chosen, steps, steps_an_epoch, observer)
    return observer.warnings


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_hardly_change_a_model(method: str) -> None:
    """Five steps, as forty rows of the defaults make."""
    found = forecast(settings(method), 5)
    assert found.effect == "hardly_changed"
    assert "this run will hardly change the model" in warned(settings(method), 5, 5)["hardly_changes"]


@pytest.mark.parametrize("method", SPECS)
def test_the_demo_changes_its_model(method: str) -> None:
    fields = {name: value for name, value in SPECS[method].items() if name not in ("method", "model_name")}
    chosen = settings(method, **fields)
    assert forecast(chosen, chosen.max_steps).effect == "changed"
    assert warned(chosen, chosen.max_steps, 40) == {}


def test_what_the_warning_advises_would_change_the_model() -> None:
    few = settings(learning_rate=4e-5, learning_rate_cap=None)
    text = warned(few, 10, 5)["hardly_changes"]
    epochs = re.search(r"about (\d+) epochs at this learning rate", text)
    rate = re.search(r"et learning_rate to (\S+) or more", text)
    assert epochs
    assert rate
    assert forecast(few, int(epochs[1]) * 5).effect == "changed"
    assert forecast(settings(learning_rate=float(rate[1]), learning_rate_cap=None), 10).effect == "changed"
    assert "learning_rate_cap" not in text, "there is none to lift"


def test_the_cap_is_named_where_it_is_in_the_way() -> None:
    text = warned(settings("kto"), 1, 1)["hardly_changes"]
    assert re.search(r"et learning_rate to \S+ or more and learning_rate_cap to null", text)
    assert "epochs" not in text, "no number of epochs that can be set would do"


def test_steps_are_named_where_steps_were_given() -> None:
    few = settings(learning_rate=4e-5, learning_rate_cap=None, max_steps=10)
    found = re.search(r"[Ss]et max_steps to (\d+)", warned(few, 10, 5)["hardly_changes"])
    assert found
    needed = int(found[1])
    assert [forecast(few, steps).effect for steps in (needed - 1, needed)] == ["hardly_changed", "changed"]


def test_a_rate_that_will_break_the_model_is_named_with_one_that_will_not() -> None:
    wild = settings(learning_rate=0.5, learning_rate_cap=None)
    text = warned(wild, 20, 20)["may_collapse"]
    rate = re.search(r"learning_rate to (\S+) or less", text)
    assert rate
    assert forecast(wild, 20).effect == "collapsed"
    assert forecast(settings(learning_rate=float(rate[1]), learning_rate_cap=None), 20).effect == "changed"


def test_loras_scaling_counts() -> None:
    weak, strong = (settings(learning_rate=1e-3, learning_rate_cap=None, lora_r=8, lora_alpha=alpha) for alpha in (0.8, 8.0))
    assert forecast(weak, 10).movement == pytest.approx(forecast(strong, 10).movement / 10)
    assert (forecast(weak, 10).effect, forecast(strong, 10).effect) == ("hardly_changed", "changed")
    assert forecast(settings(use_lora=False, lora_alpha=320.0), 10).lora_scaling == 1
    assert forecast(settings(use_rslora=True, lora_r=16, lora_alpha=8.0), 10).lora_scaling == 2


def test_an_adapter_that_trains_on_has_no_forecast() -> None:
    chosen = settings(adapter_name="a")
    assert forecast(chosen, 5).effect is None
    assert warned(chosen, 5, 5) == {}


def test_a_few_large_steps_break_a_model_that_many_small_ones_would_not() -> None:
    large, small = (settings(learning_rate=rate, learning_rate_cap=None) for rate in (0.03, 0.002))
    assert forecast(large, 6).effect == "collapsed"
    assert forecast(small, 90).effect == "changed"
    assert forecast(small, 90).movement == pytest.approx(forecast(large, 6).movement, rel=0.2)


def test_in_half_precision_it_takes_more_to_be_seen() -> None:
    """A rate that is advised there reaches the bound of the verdict there."""
    run = settings(learning_rate=4e-4, learning_rate_cap=None)
    assert (forecast(run, 8).effect, forecast(run, 8, is_half=True).effect) == ("changed", "hardly_changed")
    full = settings(learning_rate=5e-5, learning_rate_cap=None, use_lora=False)
    assert forecast(full, 8, is_half=True) == forecast(full, 8)


@pytest.mark.parametrize(
    "narrow",
    [
        {"lora_r": 1, "lora_alpha": 2.0},
        {"lora_target_modules": ["q_proj"]},
        {"use_dora": True},
        {"optim": "adafactor"},
    ],
)
def test_little_is_known_of_a_few_weights_and_of_what_was_not_measured(narrow: dict[str, Any]) -> None:
    assert forecast(settings(learning_rate=4e-4, learning_rate_cap=None, **narrow), 8).effect is None
    assert forecast(settings(learning_rate=1e-6, learning_rate_cap=None, **narrow), 8).effect == "hardly_changed"
