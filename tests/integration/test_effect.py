"""The effect of a run: verdicts that were written down before the runs, and what they are taken from."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes import RecordingObserver
from tests.training import METHODS, ON_LABELS, config, make_model, small_model, some_rows, write_rows
from trainer_core import PreferenceTrainer, effect_measurement
from trainer_core.config import SETTINGS_OF
from trainer_core.forecast import forecast
from trainer_core.samples import Sample

# Rows that the calibration's held-out files do not have and in another order; 8 of them are held back and measured.
FIRST, ROWS = 320, 160
NO_COPY: dict[str, Any] = {"use_lora": False, "use_ref_model": False}


@dataclass(frozen=True)
class Predicted:
    """A run and the verdict that was predicted for it, from the calibration's runs. No run is one of the calibration's."""

    verdict: str
    method: str
    learning_rate: float
    steps: int
    fields: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        more = "".join(f"-{name}={value}" for name, value in self.fields.items())
        return f"{self.method}-{self.learning_rate:g}-{self.steps}{more}"


ALL = {"use_lora": False}
PREDICTED = (
    Predicted("hardly_changed", "kto", 1e-7, 6),
    Predicted("hardly_changed", "kto", 1e-6, 5, {"seed": 42}),
    Predicted("hardly_changed", "kto", 1e-4, 6, {"beta": 0.5}),
    Predicted("changed", "kto", 1e-3, 10),
    Predicted("changed", "kto", 3e-3, 6, {"desirable_weight": 2.0}),
    Predicted("collapsed", "kto", 1.0, 3),
    Predicted("hardly_changed", "kto", 1e-6, 6, ALL),
    Predicted("changed", "kto", 5e-4, 6, ALL),
    Predicted("collapsed", "kto", 0.05, 6, ALL),
    Predicted("hardly_changed", "kto", 1e-6, 6, NO_COPY),
    Predicted("changed", "kto", 1e-3, 6, NO_COPY),
    Predicted("collapsed", "kto", 0.1, 4, NO_COPY),
    Predicted("hardly_changed", "ipo", 5e-7, 10),
    Predicted("hardly_changed", "ipo", 2e-4, 3, {"beta": 5.0}),
    Predicted("changed", "ipo", 2e-3, 6),
    Predicted("changed", "ipo", 1e-2, 1),
    Predicted("changed", "ipo", 3e-3, 10, {"lora_r": 4, "lora_alpha": 4.0}),
    Predicted("collapsed", "ipo", 0.3, 3),
    Predicted("hardly_changed", "ipo", 5e-6, 2, ALL),
    Predicted("changed", "ipo", 2e-4, 10, ALL),
    Predicted("collapsed", "ipo", 0.03, 12, ALL),
    Predicted("hardly_changed", "cpo", 1e-5, 10),
    Predicted("changed", "cpo", 5e-3, 3),
    Predicted("collapsed", "cpo", 0.1, 10, {"cpo_alpha": 0.5}),
    Predicted("hardly_changed", "cpo", 1e-7, 6, ALL),
    Predicted("changed", "cpo", 3e-4, 6, ALL),
    Predicted("collapsed", "cpo", 0.3, 3, ALL),
)


def settings(method: str, folder: Path, **fields: Any) -> Any:
    rows = write_rows(folder / "rows.jsonl", some_rows(method, FIRST + ROWS)[FIRST:])
    common = {"seed": 11, "dataset_path": rows, "sample_max_length": 48, "logging_steps": 1000}
    return config(method, folder / "out", **{**common, **fields})


def trained(settings: Any) -> PreferenceTrainer:
    trainer = PreferenceTrainer(settings, observer=RecordingObserver())
    trainer.train()
    return trainer


# One of each method and verdict; `make long` runs all.
SOON = {(run.method, run.verdict): run for run in PREDICTED}.values()


@pytest.mark.parametrize(
    "run", [pytest.param(run, marks=() if run in SOON else pytest.mark.long) for run in PREDICTED], ids=str
)
def test_a_run_has_the_effect_that_was_predicted(run: Predicted, tmp_path: Path) -> None:
    chosen = settings(run.method, tmp_path, learning_rate=run.learning_rate, max_steps=run.steps, **run.fields)
    trainer = trained(chosen)
    assert trainer.effect is not None
    assert trainer.effect.verdict == run.verdict, trainer.effect
    assert forecast(chosen, run.steps).effect == run.verdict


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_one_step_trains_and_says_so(method: str, tmp_path: Path) -> None:
    trainer = trained(settings(method, tmp_path, learning_rate=1e-2, max_steps=1))
    assert trainer.trainer.state.log_history[0]["learning_rate"] == pytest.approx(5e-3)
    assert trainer.effect is not None
    assert trainer.effect.verdict == "changed"
    metadata = json.loads((tmp_path / "out" / f"{method}_metadata.json").read_text(encoding="utf-8"))
    evidence = metadata["effect_evidence"]
    assert trainer.observer.effects == [(metadata["effect"], evidence)] == [("changed", evidence)]
    assert (evidence["rows_from"], evidence["rows"]) == ("held_back", 8)
    assert evidence["mean_kl"] > 0
    assert evidence["margin"]["low"] < evidence["margin"]["mean"] < evidence["margin"]["high"]
    assert evidence["samples"]["prompts"] == 4
    assert "hardly_changes" not in trainer.observer.warnings


def test_few_rows_are_measured_on_themselves_and_validation_rows_come_first(tmp_path: Path) -> None:
    few = write_rows(tmp_path / "few.jsonl", some_rows("ipo", 20))
    held = write_rows(tmp_path / "held.jsonl", some_rows("ipo", 100)[30:])
    plain = trained(
        settings("ipo", tmp_path, model_name=small_model(), dataset_path=few, max_steps=1, sample_generations=0)
    ).effect
    assert plain is not None
    assert (plain.evidence.rows_from, plain.evidence.rows, plain.evidence.samples) == ("training", 20, None)
    fields = {"eval_dataset_path": held, "eval_on_start": False, "sample_generations": 0, "per_device_eval_batch_size": 70}
    validated = trained(settings("ipo", tmp_path, model_name=small_model(), max_steps=1, **fields)).effect
    assert validated is not None
    assert (validated.evidence.rows_from, validated.evidence.rows) == ("validation", 64)


@pytest.mark.parametrize("fields", [{}, NO_COPY], ids=["LoRA", "no copy"])
def test_a_run_that_was_cut_at_its_end_has_the_effect_of_one_that_was_not(fields: dict[str, Any], tmp_path: Path) -> None:
    chosen = settings("kto", tmp_path, model_name=small_model(), max_steps=3, **fields)
    whole = trained(chosen)
    again = PreferenceTrainer(chosen, observer=RecordingObserver())
    again.train(resume_from_checkpoint=tmp_path / "out" / "checkpoint-3")
    assert whole.effect is not None
    assert again.effect == whole.effect
    assert again.observer.effects == whole.observer.effects  # type: ignore[attr-defined]
    assert (whole.effect.evidence.mean_kl is None) is bool(fields), "no copy of the model before was held"
    assert (whole._known_reference() is None) is bool(fields)


def test_to_measure_disturbs_nothing(tmp_path: Path) -> None:
    trainer = PreferenceTrainer(settings("ipo", tmp_path), observer=RecordingObserver())
    trainer.prepare()
    trainer.model.train()
    before = torch.get_rng_state(), random.getstate()
    trainer.note_start()
    effect = trainer.measure_effect()
    assert effect.verdict == "hardly_changed", "nothing was trained"
    assert effect.evidence.mean_kl == pytest.approx(0, abs=1e-8)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert trainer.model.training


def test_a_run_is_held_against_where_it_started_not_against_another_reference(tmp_path: Path) -> None:
    """An adapter that trains on is far from the base before its first step; this run did not do that."""
    first = trained(settings("ipo", tmp_path, learning_rate=1e-2, max_steps=4, sample_generations=0))
    adapter = tmp_path / "adapter"
    first.save_model(str(adapter))
    common = {
        "max_steps": 1,
        "sample_generations": 0,
        "learning_rate": 1e-7,
        "output_dir": str(tmp_path / "second"),
        "adapter_name": str(adapter),
    }
    from_base = trained(settings("ipo", tmp_path, adapter_reference="base", **common)).effect
    assert from_base is not None
    assert (from_base.verdict, from_base.decided_by) == ("hardly_changed", ("shift",))
    from_itself = trained(settings("ipo", tmp_path, **common)).effect
    assert from_itself is not None
    assert (from_itself.verdict, from_itself.decided_by) == ("hardly_changed", ("mean_kl",))
    other = make_model(tmp_path / "other")
    run = trained(settings("ipo", tmp_path, learning_rate=1e-7, max_steps=1, sample_generations=0, ref_model_name=other))
    assert run.effect is not None
    assert run.effect.verdict == "hardly_changed"
    assert run._scores(run.data_loader.held_back, run.ref_model)["chosen"].mean_kl > 1, "the reference is another model"  # type: ignore[operator]


def test_a_model_is_saved_also_where_no_memory_is_left_to_measure_it(tmp_path: Path) -> None:
    class NoMemory(PreferenceTrainer):
        def measure_effect(self) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer = NoMemory(settings("ipo", tmp_path, model_name=small_model(), max_steps=1), observer=RecordingObserver())
    trainer.train()
    assert "effect_not_measured" in trainer.observer.warnings  # type: ignore[attr-defined]
    metadata = json.loads((tmp_path / "out" / "ipo_metadata.json").read_text(encoding="utf-8"))
    assert (metadata["effect"], metadata["effect_evidence"]) == (None, None)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_without_an_observer_python_warns(tmp_path: Path) -> None:
    chosen = settings("ipo", tmp_path, learning_rate=1e-7, max_steps=2, sample_generations=0)
    with pytest.warns(UserWarning, match="^the run hardly changed the model: the KL divergence") as found:
        PreferenceTrainer(chosen).train()
    assert any(str(warning.message).startswith("this run will hardly change the model") for warning in found)


@pytest.mark.parametrize(
    "own",
    [
        {"stop_strings": ["x"]},
        {"num_beams": 2},
        {"return_dict_in_generate": True},
        {"forced_eos_token_id": 999_999},
        {"repetition_penalty": 1.3},
    ],
)
def test_a_models_own_generation_configuration_changes_no_sample(own: dict[str, Any], tmp_path: Path) -> None:
    plain, other = make_model(tmp_path / "plain"), make_model(tmp_path / "other")
    path = tmp_path / "other" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **own}), encoding="utf-8")
    chosen = {"learning_rate": 1e-2, "max_steps": 1}
    first, second = (trained(settings("ipo", tmp_path, model_name=model, **chosen)) for model in (plain, other))
    assert first.effect == second.effect
    assert second.effect is not None
    config = second.model.get_base_model().generation_config
    assert {name: getattr(config, name) for name in own} == own, "what the model brings is kept with it"


def test_a_run_whose_effect_cannot_be_measured_keeps_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> Any:
        raise RuntimeError("no answer")

    monkeypatch.setattr(PreferenceTrainer, "measure_effect", fail)
    trainer = trained(settings("ipo", tmp_path, model_name=small_model(), learning_rate=1e-3, max_steps=1))
    assert "no answer" in trainer.observer.warnings["effect_not_measured"]
    metadata = json.loads((tmp_path / "out" / "ipo_metadata.json").read_text(encoding="utf-8"))
    assert (metadata["effect"], metadata["effect_evidence"]) == (None, None)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


# Those that train all weights without a second copy of the model.
@pytest.mark.parametrize("method", [ON_LABELS, *(each for each in METHODS if not SETTINGS_OF[each].loss_needs_reference)])
def test_precision_alone_is_no_effect(method: str, tmp_path: Path) -> None:
    """In bf16 with full fine-tuning the trainer puts the model under autocast between the answers before and after."""
    more = {"use_ref_model": False} if "use_ref_model" in SETTINGS_OF[method].model_fields else {}
    fields = {"learning_rate": 1e-9, "max_steps": 2, "precision": "bf16", "use_lora": False, **more}
    effect = trained(settings(method, tmp_path, **fields)).effect
    assert effect is not None
    assert effect.verdict == "hardly_changed"
    assert effect.evidence.samples is not None
    assert (effect.evidence.samples.differing, effect.evidence.samples.length_ratio) == (0, 1)


def test_bounds_follow_the_precision_of_the_weights(tmp_path: Path) -> None:
    """With full fine-tuning they are float32 whatever the precision, and no score is rounded."""
    verdicts = {
        precision: trained(
            settings("ipo", tmp_path, learning_rate=5e-5, max_steps=8, use_lora=False, precision=precision)
        ).effect
        for precision in ("fp32", "bf16")
    }
    assert {found.verdict for found in verdicts.values() if found} == {"changed"}


@pytest.mark.parametrize("said", ["", "<think>\n\n</think>\n\n", "<think>\n"])
def test_answers_of_no_more_than_an_empty_block_of_thoughts_are_empty(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run moves the model, and after it every answer is the same few tokens that say nothing."""
    whole = effect_measurement.answer

    def silent(model: Any, renderer: Any, prompts: list[Any], most: int) -> list[Sample]:
        found = whole(model, renderer, prompts, most)
        # The reference answers with the adapter switched off.
        is_reference = all(layer.disable_adapters for layer in model.modules() if hasattr(layer, "disable_adapters"))
        return found if is_reference else [Sample(one.prompt, said, [1, 2, 3, 4, 5]) for one in found]

    monkeypatch.setattr(effect_measurement, "answer", silent)
    effect = trained(settings("ipo", tmp_path, learning_rate=1e-3, max_steps=2)).effect
    assert effect is not None
    assert effect.verdict == "collapsed"
    assert effect.decided_by == ("length_ratio",)
    assert effect.evidence.samples is not None
    assert effect.evidence.samples.length_ratio == 0
