"""What recipes do to the shipped model. The walk in the browser trains with one; `make long` runs them all."""

from pathlib import Path

import pytest

from tests.fakes import RecordingObserver
from tests.training import METHODS, config, first_rows, held_out
from trainer_core import PreferenceTrainer
from trainer_core.recipes import RECIPES, RecipeName, recipe

ROWS = 60


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_changes_the_model_without_breaking_it(name: RecipeName, method: str, tmp_path: Path) -> None:
    fields = recipe(name, method, weights=948_864, rows=ROWS, has_validation=True)
    data = {"dataset_path": first_rows(method, ROWS), "eval_dataset_path": held_out("ipo"), "sample_max_length": 48}
    trainer = PreferenceTrainer(
        config(method, tmp_path, **{"max_steps": None, **fields, **data}), observer=RecordingObserver()
    )
    trainer.train()
    assert trainer.effect is not None
    assert trainer.effect.verdict == "changed", trainer.effect
    measured = [entry for entry in trainer.trainer.state.log_history if "eval_margin_accuracy" in entry]
    assert measured[-1]["eval_margin_accuracy"] > 0.7
