"""Recipes: what they set, what a caller's fields change, and how they learn the size of a model."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_MODEL
from trainer_core.config import CONFIG_OF, METHODS, SETTINGS_OF
from trainer_core.errors import SpecInvalid
from trainer_core.estimates import planned_steps
from trainer_core.forecast import forecast
from trainer_core.model_size import weights_of
from trainer_core.recipes import MOVEMENTS, RECIPES, Facts, RecipeName, expand, recipe

WEIGHTS = (1e6, 5e8, 7.6e9, None)
ROWS = (4, 60, 200, 1000, 100_000, None)


def config(name: RecipeName, method: str, weights: float | None, rows: int | None, **named: Any) -> tuple[Any, int]:
    """A config that a recipe made, and the steps of its run."""
    size = None if weights is None else int(weights)
    made = CONFIG_OF[method](model_name="m", dataset_path="d", **recipe(name, method, weights=size, rows=rows, **named))
    left = (rows or 10_000) - int((rows or 10_000) * (made.validation_split or 0))
    return made, planned_steps(made, math.ceil(left / made.per_device_train_batch_size))


@pytest.mark.parametrize("use_lora", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_recipe_moves_every_model_within_the_bounds(weights: float | None, use_lora: bool) -> None:
    """With four rows and large models, 40 epochs at the highest rate are not always enough."""
    for name in RECIPES:
        for method in METHODS:
            for rows in ROWS[1:]:
                made, steps = config(name, method, weights, rows, use_lora=use_lora)
                found = forecast(made, steps)
                assert found.effect == "changed", (name, method, rows, found)
                assert made.learning_rate_cap is None
                reach = next(each for each in MOVEMENTS if (weights or math.inf) <= each.most_weights)
                highest = (reach.lora if use_lora else reach.full).rate
                assert made.learning_rate <= highest
                target = (reach.lora if use_lora else reach.full).target(name)
                assert found.movement == pytest.approx(target, rel=0.1) or made.learning_rate == highest


def test_a_large_model_in_half_precision_changes_too() -> None:
    for name in RECIPES:
        made, steps = config(name, "ipo", 7.6e9, 200)
        assert forecast(made, steps, is_half=True).effect == "changed", name


def test_an_unknown_size_counts_as_large_and_says_so() -> None:
    unknown, large = (expand("try", "ipo", Facts(weights, 200), {}) for weights in (None, 8_000_000_000))
    assert unknown.values() == large.values()
    assert "size is unknown" in unknown.as_dict()["message"]
    assert "8,000,000,000 weights" in large.as_dict()["message"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_field_that_the_caller_names_wins_even_at_its_default(name: RecipeName) -> None:
    for method in METHODS:
        whole = expand(name, method, Facts(1_000_000, 200), {})
        for field in whole.values():
            default = SETTINGS_OF[method].model_fields[field].default
            if field in ("learning_rate_cap", "learning_rate"):
                continue
            made = recipe(name, method, weights=1_000_000, rows=200, **{field: default})
            assert made[field] == default
            record = expand(name, method, Facts(1_000_000, 200), {field: default}).as_dict()
            assert field not in [each["name"] for each in record["fields"]]


def test_the_other_numbers_follow_the_named_ones() -> None:
    base, _ = config("try", "ipo", 1e6, 200)
    longer, steps = config("try", "ipo", 1e6, 200, max_steps=600)
    assert steps == 600
    assert longer.learning_rate == pytest.approx(base.learning_rate / 10, rel=0.1)
    epochs, steps = config("try", "ipo", 1e6, 200, num_train_epochs=2)
    assert (epochs.max_steps, steps) == (None, 2 * math.ceil(180 / 8))
    scaled, _ = config("try", "ipo", 1e6, 200, lora_alpha=8.0)
    assert scaled.learning_rate == pytest.approx(base.learning_rate * 4, rel=0.1)
    named, _ = config("try", "ipo", 1e6, 200, learning_rate=1e-3)
    assert (named.learning_rate, named.effective_learning_rate) == (1e-3, 1e-3), "the default cap would lower it"
    batch, _ = config("careful", "kto", 1e6, 2000, per_device_train_batch_size=4)
    assert (batch.per_device_train_batch_size, batch.gradient_accumulation_steps) == (4, 4)
    passes, _ = config("careful", "kto", 1e6, 2000, gradient_accumulation_steps=16)
    assert passes.per_device_train_batch_size == 2, "the least that KTO can train on"


@pytest.mark.parametrize(
    ("named", "field", "rows"),
    [
        ({"learning_rate_cap": 1e-6}, "learning_rate_cap", 200),
        ({"optim": "adafactor"}, "optim", 200),
        ({"num_train_epochs": 2}, "num_train_epochs", None),
        ({"max_steps": None}, "max_steps", None),
        ({"adapter_name": "nobody/nothing"}, "adapter_name", 200),
    ],
)
def test_fields_that_do_not_go_with_a_recipe_are_named(named: dict[str, Any], field: str, rows: int | None) -> None:
    with pytest.raises(SpecInvalid) as refused:
        recipe("careful", "ipo", weights=1_000_000, rows=rows, **named)
    assert [detail.field for detail in refused.value.details] == [field]
    allowed = recipe("careful", "ipo", weights=1_000_000, rows=rows, **named, learning_rate=1e-3)
    assert allowed["learning_rate"] == 1e-3


@pytest.mark.parametrize("name", RECIPES)
def test_where_the_rows_are_unknown_a_run_is_as_long_as_its_rate_allows(name: RecipeName) -> None:
    """In epochs, a file with more rows than assumed would move the model further than the recipe aims at."""
    found = expand(name, "ipo", Facts(948_864, None), {})
    assert "num_train_epochs" not in found.values()
    made = CONFIG_OF["ipo"](model_name="m", dataset_path="d", **found.values())
    movement = forecast(made, planned_steps(made, 10_000_000)).movement
    assert movement == pytest.approx(MOVEMENTS[0].lora.target(name), rel=0.1)
    sentences = [each["message"] for each in found.as_dict()["fields"]]
    assert not [each for each in sentences if "9,000" in each or "10,000" in each]
    assert "16 rows per step; the number of training rows is unknown" in sentences


def test_a_continued_adapter_brings_its_own_scaling(tmp_path: Path) -> None:
    def rate(**fields: Any) -> float:
        (tmp_path / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
        return recipe("try", "ipo", weights=1_000_000, rows=200, adapter_name=str(tmp_path))["learning_rate"]

    own = recipe("try", "ipo", weights=1_000_000, rows=200)["learning_rate"]  # for a scaling of 2
    assert rate(r=16, lora_alpha=32) == own
    assert rate(r=8, lora_alpha=64) == pytest.approx(own / 4, rel=0.05)
    assert rate(r=16, lora_alpha=32, use_rslora=True) == pytest.approx(own / 4, rel=0.05)
    for fields in ({"r": 8}, {"r": 0, "lora_alpha": 1}, {"r": 8, "lora_alpha": 8, "rank_pattern": {"q_proj": 4}}):
        with pytest.raises(SpecInvalid):
            rate(**fields)


def test_the_sentence_has_the_rows_that_a_step_takes() -> None:
    made = expand("careful", "kto", Facts(948_864, 2000), {"per_device_train_batch_size": 12})
    (field,) = (each for each in made.as_dict()["fields"] if each["name"] == "gradient_accumulation_steps")
    assert (field["value"], field["message"]) == (1, "12 rows per step, for 1,800 training rows")


def test_validation_rows_are_held_out_only_where_there_are_none() -> None:
    assert recipe("thorough", "ipo", rows=200)["validation_split"] == 0.1
    given = recipe("thorough", "ipo", rows=200, has_validation=True)
    assert "validation_split" not in given
    assert given["early_stopping_patience"] == 3
    few = recipe("thorough", "ipo", rows=20)
    assert not {"validation_split", "early_stopping_patience", "eval_steps"} & few.keys(), "nothing to evaluate on"
    assert "early_stopping_patience" not in recipe("thorough", "ipo", rows=200, validation_split=None)


def test_the_rarer_label_weighs_more() -> None:
    """λ_D·n_D / (λ_U·n_U) between 1 and 4/3: arXiv:2402.01306, eq. 8."""
    for desirable in (30, 170):
        made = recipe("try", "kto", rows=200, desirable=desirable)
        weights = [made.get(name, 1.0) for name in ("desirable_weight", "undesirable_weight")]
        assert 1 <= weights[0] * desirable / (weights[1] * (200 - desirable)) <= 4 / 3
        assert min(weights) == 1
    assert not {"desirable_weight", "undesirable_weight"} & recipe("try", "kto", rows=200, desirable=100).keys()
    assert "undesirable_weight" not in recipe("try", "kto", rows=200, desirable=170, desirable_weight=0.3)
    assert recipe("try", "kto", rows=100_000, desirable=10)["desirable_weight"] == 1000, "the most that the field takes"


def test_a_model_is_counted_from_its_headers(tmp_path: Path) -> None:
    assert weights_of(TINY_MODEL) == 948_864
    assert weights_of(tmp_path) is None
    assert weights_of("Qwen/Qwen2.5-7B-Instruct") is None
    for part, shape in enumerate(([3, 5], [7]), start=1):
        tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        header = json.dumps({"__metadata__": {"format": "pt"}, "w": tensor})
        file = tmp_path / f"model-0000{part}-of-00002.safetensors"
        file.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    assert weights_of(tmp_path) == 22
    for broken in (b"", b"\xff" * 8, struct.pack("<Q", 9) + b"{", struct.pack("<Q", 2) + b"[]"):
        (tmp_path / "model-00003-of-00003.safetensors").write_bytes(broken)
        assert weights_of(tmp_path) is None
