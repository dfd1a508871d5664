"""The library on the shipped model: every method trains, evaluates, saves, reloads, resumes and compares."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.fakes import RecordingObserver
from tests.training import (
    METHODS,
    ON_LABELS,
    ON_PAIRS,
    PROMPT,
    config,
    copy_model,
    first_of_each_trainer,
    held_out,
    on_labels,
    small_model,
    soon,
)
from trainer_core import (
    PreferenceTrainer,
    create_cpo_trainer,
    create_ipo_trainer,
    create_kto_trainer,
    create_preference_trainer,
)
from trainer_core.checkpoints import newest_verified
from trainer_core.comparison import load_pair
from trainer_core.config import HEADLINE
from trainer_core.errors import DataInvalid, ModelNotFound, ReferenceMismatch, Stopped
from trainer_core.methods import METHOD_OF


@pytest.mark.parametrize("method", METHODS)
def test_a_training_from_start_to_comparison(method: str, tmp_path: Path) -> None:
    observer = RecordingObserver()
    # Saved models answer in the dtype that their base names: here the one it trains in, so that the answers are the same.
    base = copy_model(tmp_path / "base", config={"dtype": "float32"})
    fields = {"model_name": base, "max_steps": 12, "beta": 0.5, "eval_dataset_path": held_out(method), "eval_steps": 6}
    settings = config(method, tmp_path / "out", **fields)
    trainer = PreferenceTrainer(settings, observer=observer)
    result = trainer.train()
    assert math.isfinite(result["train_loss"])
    assert observer.steps[-1] == 12
    assert {"preparing", "loading", "training", "evaluating", "saving"} <= set(observer.phases)

    losses = [values["eval_loss"] for _, values in observer.points if "eval_loss" in values]
    assert len(losses) == 3, "before the first step, at step 6, at the end"
    assert losses[-1] < losses[0]  # type: ignore[operator]
    evaluated = trainer.evaluate_model()
    expected = (
        {"kto_loss", "desirable_accuracy", "undesirable_accuracy", "overall_accuracy", "margin_accuracy"}
        if on_labels(method)
        else {"preference_loss", "preference_accuracy", "margin_accuracy", "margin", "confidence"}
    )
    assert {f"eval_{name}" for name in expected} <= set(evaluated)
    rows = [json.loads(line) for line in Path(held_out(method)).read_text(encoding="utf-8").splitlines()]
    assert expected <= set(trainer.compute_preference_metrics(rows))

    metadata = json.loads((tmp_path / "out" / f"{method}_metadata.json").read_text(encoding="utf-8"))
    assert metadata["training_method"] == method
    assert metadata["beta"] == 0.5
    assert metadata["ref_model_name"] == base
    assert metadata["training_completed_at"].endswith("Z")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert not list(tmp_path.rglob("*.bin"))

    live = trainer.generate_with_comparison(PROMPT, max_length=24)
    method_again, pair = load_pair(tmp_path / "out", lambda name: name)
    reloaded = METHOD_OF[method_again].reply(pair.compare(PROMPT, max_new_tokens=24))
    assert reloaded["trained_model_response"] == live["trained_model_response"]
    assert reloaded["reference_model_response"] == live["reference_model_response"]
    assert reloaded["proof"]["trained_fingerprint"] == live["proof"]["trained_fingerprint"] == metadata["weights_sha256"]
    assert reloaded["proof"]["reference_fingerprint"] == metadata["base_weights_sha256"]
    assert live["proof"]["max_logit_difference"] > 0
    if on_labels(method):
        assert live["preference_signal"] in ("desirable", "undesirable")
        assert 0.5 <= live["confidence_score"] <= 1
    else:
        assert 0 <= live["preference_score"] <= 1
        assert isinstance(live["improvement_detected"], bool)


@pytest.mark.parametrize("method", soon(first_of_each_trainer()))
def test_full_fine_tuning_keeps_its_reference(method: str, tmp_path: Path) -> None:
    trainer = PreferenceTrainer(config(method, tmp_path, model_name=small_model(), use_lora=False, max_steps=2))
    trainer.setup_reference_model()
    before = {name: tensor.clone() for name, tensor in trainer.ref_model.named_parameters()}
    trainer.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.ref_model.named_parameters())
    reply = trainer.generate_with_comparison(PROMPT, max_length=8)
    assert reply["proof"]["reference_fingerprint"] != reply["proof"]["trained_fingerprint"]
    assert (tmp_path / "model.safetensors").is_file()
    _, pair = load_pair(tmp_path, lambda name: name)
    again = pair.compare(PROMPT, max_new_tokens=8)
    assert again.trained_response == reply["trained_model_response"]


@pytest.mark.parametrize("use_lora", [True, False])
def test_kto_without_a_reference_copy_trains_the_same(tmp_path: Path, use_lora: bool) -> None:
    losses = []
    for use_ref_model in (True, False):
        observer = RecordingObserver()
        fields = {"model_name": small_model(), "use_ref_model": use_ref_model, "use_lora": use_lora, "max_steps": 3}
        trainer = PreferenceTrainer(config("kto", tmp_path / str(use_ref_model), **fields), observer=observer)
        trainer.train()
        assert (trainer.ref_model is None) is not use_ref_model
        losses.append([values["loss"] for _, values in observer.points if "loss" in values])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_kto_without_a_reference_copy_evaluates_without_one(tmp_path: Path) -> None:
    """The same metrics, from log-probabilities of before the first step; a copy is loaded when `evaluate_model` asks."""
    found = []
    for use_ref_model in (True, False):
        observer = RecordingObserver()
        fields = {"model_name": small_model(), "eval_dataset_path": held_out("kto"), "use_lora": False, "max_steps": 2}
        fields["use_ref_model"] = use_ref_model
        trainer = PreferenceTrainer(config("kto", tmp_path / str(use_ref_model), **fields), observer=observer)
        trainer.train()
        assert (trainer._known_reference() is None) is not use_ref_model
        last = next(values for _, values in reversed(observer.points) if "eval_loss" in values)
        assert (last.pop("eval_mean_kl") is None) is not use_ref_model
        found.append([last, trainer.evaluate_model()])
    for with_copy, without in zip(*found, strict=True):
        for name in ("eval_loss", "eval_kto_loss", "eval_overall_accuracy", "eval_rewards/margins", "eval_kl_estimate"):
            assert without[name] == pytest.approx(with_copy[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("method", METHODS)
def test_before_the_first_step_the_model_is_its_reference(method: str, tmp_path: Path) -> None:
    trainer = PreferenceTrainer(config(method, tmp_path))
    reply = trainer.generate_with_comparison(PROMPT, max_length=16)
    assert reply["proof"]["adapter_has_no_effect"] is True
    assert reply["trained_model_response"] == reply["reference_model_response"]
    assert not reply.get("improvement_detected")


def test_a_wrong_reference_is_noticed(tmp_path: Path) -> None:
    trainer = PreferenceTrainer(config("ipo", tmp_path, use_lora=False))
    trainer.setup_reference_model()
    with torch.no_grad():
        for tensor in trainer.ref_model.parameters():
            tensor.mul_(1.05)
    with pytest.raises(ReferenceMismatch, match=r"model\.embed_tokens\.weight is not what model\.safetensors contains"):
        trainer.train()


def test_a_reference_of_another_name_is_taken_as_it_is(tmp_path: Path) -> None:
    other = tmp_path / "other"
    trainer = PreferenceTrainer(config("ipo", other, use_lora=False, max_steps=2))
    trainer.train()
    second = PreferenceTrainer(config("ipo", tmp_path / "second", ref_model_name=str(other), max_steps=2))
    second.train()
    proof = second.generate_with_comparison(PROMPT, max_length=8)["proof"]
    weights = json.loads((other / "ipo_metadata.json").read_text())["weights_sha256"]
    assert proof["reference_fingerprint"] == weights


@pytest.mark.parametrize("method", soon([ON_LABELS, ON_PAIRS]))
def test_a_stopped_training_goes_on_where_it_left(method: str, tmp_path: Path) -> None:
    """The same weights as without the stop, to the last bit: `test_resume.py` on the shipped model."""
    PreferenceTrainer(config(method, tmp_path / "whole", max_steps=6)).train()
    with pytest.raises(Stopped):
        PreferenceTrainer(config(method, tmp_path / "cut", max_steps=6), observer=RecordingObserver(stop_after=3)).train()
    checkpoint = newest_verified([tmp_path / "cut"])
    assert checkpoint
    assert checkpoint.name == "checkpoint-3"
    PreferenceTrainer(config(method, tmp_path / "resumed", max_steps=6)).train(resume_from_checkpoint=checkpoint)
    last = newest_verified([tmp_path / "whole"])
    PreferenceTrainer(config(method, tmp_path / "ended", max_steps=6)).train(resume_from_checkpoint=last)
    whole, *others = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "resumed", "ended"))
    for other in others:
        assert all(torch.equal(tensor, other[name]) for name, tensor in whole.items())


def test_ipo_label_smoothing_is_the_expected_loss(tmp_path: Path) -> None:
    """TRL ignores it; here the trainer's loss is (1−ε)(δ−c)² + ε(δ+c)² and its rewards keep the real β."""
    losses: dict[float, list[Any]] = {}
    for smoothing in (0.0, 0.2):
        observer = RecordingObserver()
        settings = config(
            "ipo", tmp_path, beta=0.5, label_smoothing=smoothing, eval_dataset_path=held_out("ipo"), max_steps=3
        )
        PreferenceTrainer(settings, observer=observer).train()
        points = [values for _, values in observer.points]
        losses[smoothing] = [p["eval_loss"] for p in points if "eval_loss" in p]
        metric = [p["eval_preference_loss"] for p in points if "eval_preference_loss" in p]
        assert metric == pytest.approx(losses[smoothing], rel=1e-4), "the metric is the formula, the loss is the trainer's"
    # Before training δ = 0, so both are c² = 1.
    assert losses[0.0][0] == pytest.approx(1.0)
    assert losses[0.2][0] == pytest.approx(1.0)


def test_the_factories_take_their_own_config(tmp_path: Path) -> None:
    kto, ipo, cpo = (config(method, tmp_path) for method in HEADLINE)
    assert create_kto_trainer(kto).preference_method == "kto"
    assert create_ipo_trainer(ipo).preference_method == "ipo"
    assert create_cpo_trainer(cpo).preference_method == "cpo"
    assert create_preference_trainer(cpo).preference_method == "cpo"
    with pytest.raises(TypeError):
        create_kto_trainer(ipo)
    with pytest.raises(TypeError):
        PreferenceTrainer("kto")  # type: ignore[arg-type]


def test_the_documented_arguments(tmp_path: Path) -> None:
    assert PreferenceTrainer(config("kto", tmp_path))._get_method_specific_args() == {
        "beta": 0.1,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
        "max_length": 512,
        "max_prompt_length": 256,
    }
    trainer = PreferenceTrainer(config("ipo", tmp_path, learning_rate_cap=5e-7))
    with pytest.warns(UserWarning, match="learning_rate_cap"):
        arguments = trainer.get_training_arguments()
    assert trainer._get_method_specific_args()["loss_type"] == "ipo"
    assert arguments.learning_rate == 5e-7
    assert arguments.remove_unused_columns is False
    assert arguments.label_names[:2] == ["chosen_labels", "rejected_labels"]


def test_the_experimental_cpo_trainer_is_the_one_that_is_built_on() -> None:
    """TRL may change it without notice: what is overridden and passed must still be there."""
    import inspect

    from trainer_core.methods.cpo_trainer import CPOTrainer, TRLConfig

    assert list(inspect.signature(CPOTrainer.__init__).parameters)[1:8] == [
        "model",
        "args",
        "data_collator",
        "train_dataset",
        "eval_dataset",
        "processing_class",
        "model_init",
    ]
    assert list(inspect.signature(CPOTrainer.tokenize_row).parameters) == ["self", "feature", "model"]
    fields = {"beta", "loss_type", "label_smoothing", "max_length", "cpo_alpha", "simpo_gamma", "alpha"}
    assert fields <= set(inspect.signature(TRLConfig.__init__).parameters)
    default = TRLConfig("x", use_cpu=True, bf16=False)
    assert (default.alpha, default.disable_dropout) == (0.0, True)


def test_a_clamped_rate_and_a_single_label_are_warned_of(tmp_path: Path) -> None:
    rows = tmp_path / "one.jsonl"
    line = json.dumps({"prompt": "س", "completion": "ج", "label": True})
    rows.write_text(f"{line}\n" * 4, encoding="utf-8")
    observer = RecordingObserver()
    trainer = PreferenceTrainer(
        config("kto", tmp_path, learning_rate_cap=1e-6, dataset_path=str(rows), max_steps=1), observer=observer
    )
    trainer.load()
    assert "0.001" in observer.warnings["learning_rate_clamped"]
    assert "1e-06" in observer.warnings["learning_rate_clamped"]
    assert "desirable" in observer.warnings["one_label_only"]
    metrics = trainer.evaluate_model()
    assert metrics["eval_undesirable_accuracy"] is None
    assert "evaluated_on_training_rows" in observer.warnings


def test_what_is_missing_is_said_before_a_model_loads(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="nowhere"):
        PreferenceTrainer(config("ipo", tmp_path, model_name=str(tmp_path / "nowhere"))).load()
    trainer = PreferenceTrainer(config("ipo", tmp_path, dataset_path=str(tmp_path / "absent.jsonl")))
    with pytest.raises(DataInvalid, match="absent"):
        trainer.load()
    assert trainer.model is None


def test_sampling_tells_its_seed_and_repeats(tmp_path: Path) -> None:
    trainer = PreferenceTrainer(config("ipo", tmp_path))
    first = trainer.generate_with_comparison(PROMPT, max_length=24, temperature=1.5)
    again = trainer.generate_with_comparison(PROMPT, max_length=24, temperature=1.5, seed=first["seed"])
    assert first["trained_model_response"] == again["trained_model_response"]
    assert trainer.generate_with_comparison(PROMPT, max_length=4)["seed"] is None
