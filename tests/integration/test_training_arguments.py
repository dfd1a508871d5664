"""`create_trainer` with the training arguments that a caller brings: transformers' own, TRL's, and ours, changed."""

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments
from trl import SFTConfig

from tests.fakes import RecordingObserver
from tests.training import METHODS, config, held_out, some_rows, write_rows
from trainer_core import PreferenceTrainer
from trainer_core.errors import SpecInvalid
from trainer_core.methods import METHOD_OF


def loaded(method: str, folder: Path, **fields: Any) -> Any:
    base: dict[str, Any] = {
        "dataset_path": write_rows(folder / "rows.jsonl", some_rows(method, 16)),
        "per_device_train_batch_size": 4,
        "beta": 0.3,
        "max_length": 200,
        "max_prompt_length": 100,
        "warmup_ratio": 0.0,
    }
    trainer = PreferenceTrainer(config(method, folder / "own", **{**base, **fields}), observer=RecordingObserver())
    trainer.load()
    return trainer


def made(trainer: Any, arguments: TrainingArguments) -> Any:
    return trainer.create_trainer(trainer.data_loader.dataset(trainer.data_loader.train), arguments, [])


@pytest.mark.parametrize("method", METHODS)
def test_plain_training_arguments_train_as_the_config_says(method: str, tmp_path: Path) -> None:
    """The losses of two steps are those of the product's own arguments with the same settings."""
    settings = {"learning_rate": 2e-3, "max_steps": 2, "seed": 7, "logging_steps": 1}
    plain = TrainingArguments(output_dir=str(tmp_path / "plain"), weight_decay=0.1, use_cpu=True, **settings)
    trainer = loaded(method, tmp_path, learning_rate=1e-4, max_steps=3, seed=7)
    found = made(trainer, plain)
    assert isinstance(found.args, METHOD_OF[method].arguments_class)
    assert (found.args.output_dir, found.args.weight_decay) == (str(tmp_path / "plain"), 0.1)
    assert (found.args.learning_rate, found.args.max_steps, found.args.seed) == (2e-3, 2, 7)
    # What the caller left alone is the config's: transformers' defaults would be 8 rows, a warm-up and 500 steps.
    assert (found.args.per_device_train_batch_size, found.args.gradient_accumulation_steps) == (4, 1)
    assert (found.args.beta, found.args.max_length) == (0.3, 200)
    assert found.args.remove_unused_columns is False
    assert found.args.label_names == list(trainer._method.label_names)
    for name, value in trainer._method.fixed_arguments().items():
        assert getattr(found.args, name) in (value, [value])
    assert found.identity["learning rate"] == 2e-3
    own = loaded(method, tmp_path, weight_decay=0.1, **settings)
    expected = made(own, own.get_training_arguments())
    for one in (found, expected):
        one.train()
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (found, expected)]
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]


@pytest.mark.parametrize("method", METHODS)
def test_arguments_of_trl_get_no_loss_of_their_own(method: str, tmp_path: Path) -> None:
    """TRL's own defaults are another beta, and for DPO another loss."""
    trainer = loaded(method, tmp_path)
    own = trainer.get_training_arguments()
    arguments_class = METHOD_OF[method].arguments_class
    found = made(trainer, arguments_class(output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, logging_steps=3)).args
    fields = trainer._method.trl_arguments()
    assert {name: getattr(found, name) for name in fields} == {name: getattr(own, name) for name in fields}
    assert (found.output_dir, found.logging_steps) == (str(tmp_path / "trl"), 3)
    with pytest.raises(SpecInvalid, match=r"beta .* set it in the config"):
        made(trainer, arguments_class(output_dir=str(tmp_path), use_cpu=True, bf16=False, beta=0.5))


@pytest.mark.parametrize(
    ("method", "field", "value"),
    [("kto", "desirable_weight", 2.0), ("ipo", "loss_type", ["robust"]), ("cpo", "loss_type", "hinge")],
)
def test_arguments_of_trl_with_another_loss_are_refused(method: str, field: str, value: Any, tmp_path: Path) -> None:
    fields = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, field: value}
    with pytest.raises(SpecInvalid, match=f"{field} .* set it in the config"):
        made(loaded(method, tmp_path), METHOD_OF[method].arguments_class(**fields))


@pytest.mark.parametrize("method", METHODS)
def test_the_products_arguments_may_be_changed(method: str, tmp_path: Path) -> None:
    trainer = loaded(method, tmp_path)
    arguments = trainer.get_training_arguments()
    arguments.learning_rate = 3e-3
    found = made(trainer, arguments)
    assert found.args is arguments
    assert found.identity["learning rate"] == 3e-3
    arguments.beta = 0.5
    with pytest.raises(SpecInvalid, match=r"beta to 0\.5, but the config makes it 0\.3"):
        made(trainer, arguments)


def test_arguments_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    trainer = loaded("kto", tmp_path)
    base: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True}
    for wrong in ({"per_device_train_batch_size": 6}, {"per_device_eval_batch_size": 3}, {"auto_find_batch_size": True}):
        with pytest.raises(SpecInvalid, match=next(iter(wrong))):
            made(trainer, TrainingArguments(**base, **wrong))
    assert made(trainer, TrainingArguments(**base, gradient_accumulation_steps=2)).args.gradient_accumulation_steps == 2
    with pytest.raises(SpecInvalid, match="eval_strategy, but there is no validation data"):
        made(trainer, TrainingArguments(**base, eval_strategy="epoch"))
    with pytest.raises(SpecInvalid, match="packing, which KTOConfig does not have"):
        made(trainer, SFTConfig(**base, bf16=False, packing=True))
    validated = loaded("kto", tmp_path, eval_dataset_path=held_out("kto"))
    assert made(validated, TrainingArguments(**base, eval_strategy="epoch")).args.eval_strategy == "epoch"
