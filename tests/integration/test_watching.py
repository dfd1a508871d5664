"""What a person sees of a training, and what ends it: samples, early stopping, reports, guards, nulls."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.fakes import RecordingObserver
from tests.training import METHODS, config, make_model, on_labels, some_rows, write_rows
from trainer_core import PreferenceTrainer
from trainer_core.config import SETTINGS_OF
from trainer_core.errors import NonfiniteLoss, NotInstalled, SpecInvalid, Stopped


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watching")
    make_model(folder / "model")
    for method in METHODS:
        rows = some_rows(method, 40)
        write_rows(folder / f"{method}.jsonl", rows[:32])
        write_rows(folder / f"{method}_held_out.jsonl", rows[32:])
    return folder


def trainer_of(method: str, place: Path, out: Path, observer: RecordingObserver | None = None, **fields: Any) -> Any:
    base = {
        "model_name": str(place / "model"),
        "dataset_path": str(place / f"{method}.jsonl"),
        "eval_dataset_path": str(place / f"{method}_held_out.jsonl"),
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "eval_steps": 2,
    }
    return PreferenceTrainer(config(method, out, **{**base, **fields}), observer=observer or RecordingObserver())


# -- samples


@pytest.mark.parametrize("method", METHODS)
def test_samples_come_with_each_evaluation(method: str, place: Path, tmp_path: Path) -> None:
    trainer = trainer_of(method, place, tmp_path, max_steps=4, sample_max_length=5, sample_generations=3)
    trainer.train()
    observer = trainer.observer
    assert [step for step, _ in observer.answers] == [0, 2, 4]
    prompts = [json.loads(line)["prompt"] for line in Path(trainer.config.eval_dataset_path).read_text().splitlines()]
    for _, samples in observer.answers:
        assert len({sample["prompt"] for sample in samples}) == 3
        assert {sample["prompt"] for sample in samples} <= set(prompts)
        assert all(0 < sample["tokens"] <= 5 for sample in samples)
    lengths = [values["eval_sample_tokens"] for _, values in observer.points if "eval_sample_tokens" in values]
    assert lengths == [sum(sample["tokens"] for sample in samples) / 3 for _, samples in observer.answers]


def test_samples_are_what_the_comparison_answers(place: Path, tmp_path: Path) -> None:
    """One rendering, one model: prompts of different lengths in one batch answer as each does alone."""
    prompts = ["ما عاصمة مصر؟", "اذكر عكس كلمة جديد من فضلك، ثم اشرح لماذا."]
    trainer = trainer_of("ipo", place, tmp_path, sample_prompts=prompts, sample_max_length=8, learning_rate=3e-2)
    trainer.train()
    _, samples = trainer.observer.answers[-1]
    alone = [trainer.generate_with_comparison(prompt, max_length=8)["trained_model_response"] for prompt in prompts]
    assert [sample["response"] for sample in samples] == alone
    assert [sample["prompt"] for sample in samples] == prompts


def test_no_samples_when_none_are_asked(place: Path, tmp_path: Path) -> None:
    trainer = trainer_of("cpo", place, tmp_path, max_steps=2, sample_generations=0)
    trainer.train()
    assert trainer.observer.answers == []
    assert not any("eval_sample_tokens" in values for _, values in trainer.observer.points)


# -- early stopping


def evaluations(observer: RecordingObserver, name: str) -> dict[int, float]:
    return {step: values[name] for step, values in observer.points if values.get(name) is not None}  # type: ignore[misc]


@pytest.mark.parametrize(("metric", "sign"), [("loss", 1), ("preference_accuracy", -1), ("margin_accuracy", -1)])
def test_early_stopping_keeps_the_best_model(metric: str, sign: int, place: Path, tmp_path: Path) -> None:
    """A rate so high that the evaluations soon get worse."""
    fields = {"early_stopping_patience": 2, "early_stopping_metric": metric, "max_steps": 40, "save_total_limit": 1}
    trainer = trainer_of("ipo", place, tmp_path, learning_rate=0.3, **fields)
    trainer.train()
    seen = evaluations(trainer.observer, f"eval_{metric}")
    after_start = {step: sign * value for step, value in seen.items() if step}
    best = min(after_start, key=lambda step: (after_start[step], step))
    stopped_at = max(after_start)
    assert stopped_at == best + 4 < 40
    metadata = json.loads((tmp_path / "ipo_metadata.json").read_text())
    assert metadata["early_stopping"] == {"metric": metric, "best_step": best, "last_step": stopped_at}
    assert f"step {best} of {stopped_at}" in trainer.observer.warnings["best_model_taken"]
    saved = load_file(tmp_path / "adapter_model.safetensors")
    kept = load_file(tmp_path / f"checkpoint-{best}" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in saved.items())
    assert trainer.evaluate_model()[f"eval_{metric}"] == pytest.approx(seen[best], rel=1e-5)


def test_early_stopping_counts_on_after_a_resume(place: Path, tmp_path: Path) -> None:
    """The best checkpoint lies in the first attempt's directory, and the patience was half spent there."""
    fields = {"early_stopping_patience": 3, "max_steps": 40, "learning_rate": 0.3}
    whole = trainer_of("ipo", place, tmp_path / "whole", **fields)
    whole.train()
    expected = json.loads((tmp_path / "whole" / "ipo_metadata.json").read_text())
    stop = expected["early_stopping"]["last_step"] - 1
    with pytest.raises(Stopped):
        trainer_of("ipo", place, tmp_path / "first", RecordingObserver(stop_after=stop), **fields).train()
    second = trainer_of("ipo", place, tmp_path / "second", **fields)
    second.train(resume_from_checkpoint=tmp_path / "first" / f"checkpoint-{stop}")
    found = json.loads((tmp_path / "second" / "ipo_metadata.json").read_text())
    assert found["early_stopping"] == expected["early_stopping"]
    assert found["weights_sha256"] == expected["weights_sha256"]


def test_early_stopping_needs_validation_data(place: Path, tmp_path: Path) -> None:
    trainer = trainer_of("cpo", place, tmp_path, eval_dataset_path=None, early_stopping_patience=1)
    with pytest.raises(SpecInvalid, match="needs validation data"):
        trainer.load()
    assert trainer.model is None


# -- reports


def test_metrics_go_to_tensorboard_wandb_and_mlflow(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out = tmp_path / "out"
    trainer = trainer_of("ipo", place, out, max_steps=2, report_to=["tensorboard", "wandb", "mlflow"])
    trainer.train()
    events = b"".join(path.read_bytes() for path in out.rglob("events.out.tfevents.*"))
    assert b"eval/preference_accuracy" in events
    assert b"eval/margin_accuracy" in events
    assert b"train/rewards/margins" in events
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    series = {
        path.relative_to(tmp_path).as_posix().partition("/metrics/")[2] for path in tmp_path.glob("mlruns/**/metrics/**/*")
    }
    assert {"eval_preference_accuracy", "eval_margin_accuracy", "loss"} <= series
    assert str(tmp_path) not in (os.environ.get("WANDB_NAME") or "")


def test_a_report_whose_package_is_missing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer_core.trackers.find_spec", lambda _: None)
    trainer = trainer_of("ipo", place, tmp_path, report_to=["wandb"])
    with pytest.raises(NotInstalled, match="pip install wandb") as found:
        trainer.load()
    assert not found.value.user_fault, "only who runs the service can install it"
    assert trainer.tokenizer is None


# -- guards


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_nan_stops_with_its_step_and_rows(method: str, place: Path, tmp_path: Path) -> None:
    """The embedding of one token is NaN, which only one row holds. KTO's own mean would leave that row out."""
    rows = some_rows(method, 24)
    names = ("completion",) if on_labels(method) else ("chosen",)
    rows[6] |= {name: "~" + rows[6][name] for name in names}
    trainer = trainer_of(
        method, place, tmp_path, dataset_path=write_rows(tmp_path / "rows.jsonl", rows), eval_dataset_path=None
    )
    inner = trainer.prepare()
    poison = trainer.tokenizer("~", add_special_tokens=False)["input_ids"][0]
    batches = [[row["row"] for row in trainer.data_loader.train[i : i + 4]] for i in range(0, 24, 4)]
    step = next(i for i, batch in enumerate(batches, start=1) if 7 in batch)
    first = inner.training_step

    def poisoned(model: Any, inputs: Any, *args: Any) -> Any:
        if inner.state.global_step + 1 == step:
            with torch.no_grad():
                model.get_input_embeddings().weight[poison] = math.nan
        return first(model, inputs, *args)

    inner.training_step = poisoned
    with pytest.raises(NonfiniteLoss) as caught:
        trainer.train()
    assert f"at step {step}" in caught.value.message
    named = [detail.line for detail in caught.value.details]
    # Without a reference there are no log-probabilities by row, so the whole batch is named.
    assert 7 in named
    partners = [row["KL_row"] for row in trainer.data_loader.train if "KL_row" in row and row["row"] in batches[step - 1]]
    assert set(named) <= {*batches[step - 1], *partners}
    if SETTINGS_OF[method].loss_needs_reference and not on_labels(method):
        assert named == [7]


def test_signs_become_warnings_once(place: Path, tmp_path: Path) -> None:
    """A rate so high that the model soon says one word again and again."""

    class Counting(RecordingObserver):
        def __init__(self) -> None:
            super().__init__()
            self.told: list[str] = []

        def warning(self, code: str, message: str) -> None:
            self.told.append(code)
            super().warning(code, message)

    trainer = trainer_of("ipo", place, tmp_path, Counting(), learning_rate=0.1, max_grad_norm=1000, max_steps=12)
    trainer.train()
    seen = evaluations(trainer.observer, "eval_sample_repetition")
    assert sum(value > 0.5 for value in seen.values()) > 1
    assert trainer.observer.told.count("repetition") == 1
    assert "repeats earlier text in the same answer" in trainer.observer.warnings["repetition"]


@pytest.mark.parametrize("label", [True, False])
def test_batches_of_one_label_give_null(label: bool, place: Path, tmp_path: Path) -> None:
    rows = [row for row in some_rows("kto", 60) if row["label"] is label][:12]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    trainer = trainer_of("kto", place, tmp_path, dataset_path=path, eval_dataset_path=path, max_steps=2)
    trainer.train()
    there, absent = ("chosen", "rejected") if label else ("rejected", "chosen")
    trained = [values for _, values in trainer.observer.points if "loss" in values]
    evaluated = [values for _, values in trainer.observer.points if "eval_loss" in values]
    for values, prefix in [*((v, "") for v in trained), *((v, "eval_") for v in evaluated)]:
        assert values[f"{prefix}rewards/{absent}"] is None
        assert values[f"{prefix}rewards/margins"] is None
        assert isinstance(values[f"{prefix}rewards/{there}"], float)
    accuracies = ("eval_desirable_accuracy", "eval_undesirable_accuracy")
    results = trainer.evaluate_model()
    for found in (*evaluated, results):
        assert [found[name] is not None for name in accuracies] == [label, not label]
    json.dumps(results, allow_nan=False)
