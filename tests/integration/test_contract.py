"""What the published interface of `PreferenceTrainer` promises beyond its examples, which `docs/trainer_core.md` runs."""

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import TrainingArguments

import trainer_core.config
import trainer_core.preference_trainer
from tests.fakes import RecordingObserver
from tests.methods import facts_of
from tests.training import CONFIGS, METHODS, PROMPT, config, crossed, make_model, on_labels, some_rows, write_rows
from trainer_core import PreferenceTrainer
from trainer_core.base_trainer import BaseTrainer


@pytest.fixture
def model(tmp_path: Path) -> str:
    return make_model(tmp_path / "model")


def trainer_of(method: str, model: str, tmp_path: Path, **fields: Any) -> Any:
    path = write_rows(tmp_path / f"{method}.jsonl", some_rows(method, 32))
    base = {"model_name": model, "dataset_path": path, "max_steps": 2, "per_device_train_batch_size": 4}
    return PreferenceTrainer(config(method, tmp_path / "out", **{**base, **fields}), observer=RecordingObserver())


def test_the_names_and_signatures() -> None:
    assert issubclass(PreferenceTrainer, BaseTrainer)
    expected = {
        "_get_training_method": [],
        "setup_reference_model": [],
        "create_trainer": ["dataset", "training_args", "callbacks"],
        "_get_method_specific_args": [],
        "get_training_arguments": [],
        "evaluate_model": ["eval_dataset"],
        "compute_preference_metrics": ["eval_dataset"],
        "generate_with_comparison": ["prompt", "max_length", "kwargs"],
        "save_model": ["output_dir"],
    }
    for name, parameters in expected.items():
        assert list(inspect.signature(getattr(PreferenceTrainer, name)).parameters)[1:] == parameters, name
    for method in ("preference", *METHODS):
        factory = getattr(trainer_core.preference_trainer, f"create_{method}_trainer")
        assert list(inspect.signature(factory).parameters) == ["config"]
    assert inspect.signature(PreferenceTrainer.generate_with_comparison).parameters["max_length"].default == 512
    for kind in CONFIGS.values():
        assert getattr(trainer_core.config, kind.__name__) is kind


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults(method: str) -> None:
    settings = CONFIGS[method](model_name="Qwen/Qwen2.5-7B", dataset_path="data/rows.jsonl")
    rate, batches, eval_steps = (1e-6, (4, 4), 500) if on_labels(method) else (5e-7, (2, 8), 1000)
    assert (settings.beta, settings.max_prompt_length, settings.max_length) == (facts_of(method).BETA, 256, 512)
    assert settings.learning_rate == settings.learning_rate_cap == rate
    assert (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) == batches
    assert settings.eval_steps == eval_steps
    assert settings.gradient_checkpointing is True
    assert settings.use_lora is True
    assert settings.num_train_epochs == 1
    assert settings.output_dir == f"./checkpoints/{method}"
    assert settings.preference_method == method
    own = facts_of(method).METADATA
    assert {name: getattr(settings, name) for name in own} == own


def test_nothing_is_loaded_before_it_is_needed(model: str, tmp_path: Path) -> None:
    trainer = trainer_of("kto", model, tmp_path)
    assert trainer.ref_model is None
    assert trainer.model is None


@pytest.mark.parametrize("method", METHODS)
def test_the_method_specific_arguments(method: str, model: str, tmp_path: Path) -> None:
    trainer = trainer_of(method, model, tmp_path, beta=0.2, max_length=300, max_prompt_length=100)
    common = {"beta": 0.2, "max_length": 300, "max_prompt_length": 100}
    assert trainer._get_method_specific_args() == {**common, **facts_of(method).ARGUMENTS}
    named = {"training_method": method, "ref_model_name": model}
    assert trainer.method_metadata() == {**named, **common, **facts_of(method).METADATA}


@pytest.mark.parametrize("method", METHODS)
def test_the_training_arguments(method: str, model: str, tmp_path: Path) -> None:
    fields = {
        "learning_rate": 1e-3,
        "learning_rate_cap": 1e-6 if on_labels(method) else 5e-7,
        "gradient_checkpointing": True,
    }
    trainer = trainer_of(method, model, tmp_path, **fields)
    arguments = trainer.get_training_arguments()
    assert isinstance(arguments, TrainingArguments)
    assert arguments.remove_unused_columns is False
    assert arguments.gradient_checkpointing is True
    assert arguments.learning_rate == fields["learning_rate_cap"]
    if on_labels(method):
        assert arguments.label_names == ["completion_labels"]
    else:
        assert arguments.label_names == [
            "chosen_labels",
            "rejected_labels",
            "chosen_input_ids",
            "rejected_input_ids",
            "chosen_attention_mask",
            "rejected_attention_mask",
        ]
    assert trainer.observer.warnings["learning_rate_clamped"]


@pytest.mark.parametrize(("method", "form"), crossed(["raw", "mapped", "prepared"]))
def test_the_trainer_of_trl_takes_datasets(method: str, form: str, model: str, tmp_path: Path) -> None:
    """Rows as in a file, rows as the loader's functions map them, and the loader's own: the same training."""
    trainer = trainer_of(method, model, tmp_path)
    arguments = trainer.get_training_arguments()
    raw = Dataset.from_list(some_rows(method, 32))
    assert trainer.preference_method == method == trainer._get_training_method()
    if on_labels(method):
        mapped = raw.map(trainer.data_loader.tokenize_and_format_kto, batched=True)
    else:
        mapped = raw.map(trainer.data_loader.tokenize_and_format, batched=True)
    datasets = {"raw": raw, "mapped": mapped, "prepared": trainer.data_loader.dataset(trainer.data_loader.train)}
    made = trainer.create_trainer(datasets[form], arguments, [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock, _, _ = facts_of(method).stock()
    assert isinstance(made, stock)
    assert len(made.train_dataset) == len(trainer.data_loader.train) == 32
    first = trainer.data_loader.train[0]
    assert {name: made.train_dataset[0][name] for name in ("prompt_ids", "row")} == {
        n: first[n] for n in ("prompt_ids", "row")
    }
    assert made.train().global_step == 2


@pytest.mark.parametrize("field", ["weight", "loss_weight", "KL_row"])
def test_a_field_of_the_file_is_no_column_of_the_trainers(field: str, model: str, tmp_path: Path) -> None:
    """Whatever its name, it is kept and ignored."""
    losses = []
    for extra in ({}, {field: 0.25}, {field: "high"}):
        path = write_rows(tmp_path / "rows.jsonl", [{**row, **extra} for row in some_rows("kto", 16)])
        trainer = trainer_of("kto", model, tmp_path, dataset_path=path)
        losses.append(trainer.train()["train_loss"])
    assert losses[0] == losses[1] == losses[2]


def test_pairs_keep_their_confidence(model: str, tmp_path: Path) -> None:
    rows = [{**row, "confidence": 0.1 * (i % 9 + 1)} for i, row in enumerate(some_rows("ipo", 16))]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    trainer = trainer_of("kto", model, tmp_path, dataset_path=path, use_confidence=True)
    trainer.load()
    assert {row["row"]: row["loss_weight"] for row in trainer.data_loader.train} == {
        i: row["confidence"] for i, row in enumerate(rows, start=1)
    }


def test_tables_with_holes_and_pairs_are_mapped_for_kto(model: str, tmp_path: Path) -> None:
    """A table has null where a row lacks a field; and pairs are taken apart here as well."""
    rows = [row if i % 2 else {**row, "confidence": 0.5} for i, row in enumerate(some_rows("kto", 16))]
    trainer = trainer_of("kto", model, tmp_path, use_confidence=True)
    arguments = trainer.get_training_arguments()
    table = Dataset.from_list(rows)
    assert trainer.evaluate_model(table)["eval_kto_loss"] == pytest.approx(trainer.evaluate_model(rows)["eval_kto_loss"])
    for raw, count in ((table, 16), (Dataset.from_list(some_rows("ipo", 8)), 16)):
        mapped = raw.map(trainer.data_loader.tokenize_and_format_kto, batched=True)
        made = trainer.create_trainer(mapped, arguments, [])
        assert len(made.train_dataset) == count


def test_a_trainer_of_ones_own_evaluates(model: str, tmp_path: Path) -> None:
    trainer = trainer_of("ipo", model, tmp_path, validation_split=0.25)
    arguments = trainer.get_training_arguments()
    made = trainer.create_trainer(trainer.data_loader.dataset(trainer.data_loader.train), arguments, [])
    made.train()
    assert [step for step, _ in trainer.observer.answers] == [0, 2]
    assert {"eval_preference_accuracy", "eval_margin_accuracy"} <= set(made.evaluate())


def test_a_pair_with_a_completion_is_a_pair(model: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{**row, "completion": "x"} for row in some_rows("ipo", 8)])
    trainer_of("ipo", model, tmp_path, dataset_path=path).load()


def test_mapping_may_drop_rows(model: str, tmp_path: Path) -> None:
    trainer = trainer_of("ipo", model, tmp_path, on_overlong="drop", max_prompt_length=24, max_length=64)
    trainer.load()
    raw = Dataset.from_list(some_rows("ipo", 32))
    mapped = raw.map(trainer.data_loader.tokenize_and_format, batched=True, batch_size=5)
    assert 0 < len(mapped) < 32
    assert max(map(len, mapped["prompt_ids"])) <= 24
    assert len(trainer.data_loader.train) == len(mapped)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_returned_and_saved(method: str, model: str, tmp_path: Path) -> None:
    trainer = trainer_of(method, model, tmp_path)
    trainer.train()
    rows = Dataset.from_list(some_rows(method, 40)).select(range(32, 40))
    evaluated, metrics = trainer.evaluate_model(rows), trainer.compute_preference_metrics(rows)
    if on_labels(method):
        expected = {"kto_loss", "desirable_accuracy", "undesirable_accuracy", "overall_accuracy", "margin_accuracy"}
        reply = {"preference_signal", "confidence_score"}
    else:
        expected = {"preference_loss", "preference_accuracy", "margin_accuracy", "margin", "confidence"}
        reply = {"preference_score", "improvement_detected"}
    assert expected <= set(metrics)
    assert {f"eval_{name}" for name in expected} | {"eval_loss"} <= set(evaluated)
    for name in expected:
        assert evaluated[f"eval_{name}"] == pytest.approx(metrics[name])

    answer = trainer.generate_with_comparison(PROMPT, max_length=4, temperature=0.7, top_p=0.9, seed=3)
    assert {"prompt", "trained_model_response", "reference_model_response", *reply} <= set(answer)
    assert (answer["prompt"], answer["seed"]) == (PROMPT, 3)

    trainer.save_model(str(tmp_path / "elsewhere"))
    names = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", f"{method}_metadata.json"} <= names
    metadata = json.loads((tmp_path / "elsewhere" / f"{method}_metadata.json").read_text())
    common = {"training_method", "beta", "max_prompt_length", "max_length", "ref_model_name", "training_completed_at"}
    assert common | set(facts_of(method).METADATA) <= set(metadata)
    assert metadata["training_method"] == method
    assert str(tmp_path / "out") not in json.dumps({**metadata, "model_name": "", "ref_model_name": ""})
