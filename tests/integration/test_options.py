"""Optimizers, dropout, DoRA and schedules reach TRL and peft, act where they should, and survive a resume bit by bit."""

import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.adapters import make_adapter
from tests.fakes import RecordingObserver
from tests.integration.test_resume import ROWS, STEPS_AN_EPOCH, assert_same, end_of, settings
from tests.training import METHODS, ON_LABELS, ON_PAIRS, make_model, on_labels, some_rows, write_rows
from trainer_core import PreferenceTrainer
from trainer_core.checkpoints import newest_verified
from trainer_core.comparison import load_pair
from trainer_core.config import SETTINGS_OF
from trainer_core.errors import SpecInvalid, Stopped, TafdilError
from trainer_core.merging import merge

# Two epochs of three steps, and nothing measured that no test here looks at.
STEPS = 2 * STEPS_AN_EPOCH
QUICK = {"num_train_epochs": 2, "sample_generations": 0, "eval_on_start": False}
# Each option with others that it does not meddle with.
OPTIONS: dict[str, dict[str, Any]] = {
    "8 bit, rsLoRA, schedule": {
        "optim": "adamw_8bit",
        "use_rslora": True,
        "lora_r": 64,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine_with_min_lr",
        "min_lr_rate": 0.2,
        "eval_steps": 0.3,
        "save_steps": "epoch",
    },
    "adafactor, dropout": {"optim": "adafactor", "lora_dropout": 0.3, "gradient_checkpointing": True},
    "DoRA, betas": {
        "use_dora": True,
        "lora_dropout": 0.3,
        "optim": "adamw_torch",
        "adam_beta1": 0.8,
        "adam_beta2": 0.99,
        "adam_epsilon": 1e-6,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    folder = tmp_path_factory.mktemp("options")
    make_model(folder / "model")
    for method in (ON_PAIRS, ON_LABELS):
        rows = some_rows(method, ROWS + 8)
        write_rows(folder / f"{method}.jsonl", rows[:ROWS])
        write_rows(folder / f"{method}_held_out.jsonl", rows[ROWS:])
    yield folder
    shutil.rmtree(folder)


def trainer_of(method: str, folder: Path, stop_after: int | None = None, **fields: Any) -> PreferenceTrainer:
    shutil.rmtree(folder / "out", ignore_errors=True)
    return resumed_of(method, folder, stop_after, **fields)


def resumed_of(method: str, folder: Path, stop_after: int | None = None, **fields: Any) -> PreferenceTrainer:
    name = ON_LABELS if on_labels(method) else ON_PAIRS
    data = {"dataset_path": str(folder / f"{name}.jsonl"), "eval_dataset_path": str(folder / f"{name}_held_out.jsonl")}
    found = settings(method, folder, **{**data, **QUICK, **fields})
    return PreferenceTrainer(found, observer=RecordingObserver(stop_after=stop_after))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_ends_as_an_unbroken_one(name: str, folder: Path) -> None:
    whole = trainer_of("ipo", folder, **OPTIONS[name])
    whole.train()
    expected = end_of(whole)
    if whole.config.optim == "adamw_8bit":
        state = whole.trainer.optimizer.optimizer.state
        assert any(kept["state1"].dtype == torch.uint8 for kept in state.values())
    with pytest.raises(Stopped):
        trainer_of("ipo", folder, 4, **OPTIONS[name]).train()
    checkpoint = newest_verified([folder / "out"])
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-4"
    again = resumed_of("ipo", folder, **OPTIONS[name])
    again.train(resume_from_checkpoint=checkpoint)
    assert_same(end_of(again), expected)


def test_a_checkpoint_of_a_run_with_other_options_is_refused(folder: Path) -> None:
    with pytest.raises(Stopped):
        trainer_of("ipo", folder, 1).train()
    kept = folder / "kept"
    shutil.copytree(folder / "out" / "checkpoint-1", kept / "checkpoint-1", dirs_exist_ok=True)
    for fields, reason in (
        ({"optim": "adafactor"}, "a different optimizer: it has adamw_torch_fused, and this run has adafactor"),
        ({"adam_beta1": 0.5}, r"a different Adam beta1: it has 0\.9, and this run has 0\.5"),
        ({"lora_dropout": 0.1}, r"a different LoRA dropout: it has 0\.0, and this run has 0\.1"),
        ({"use_rslora": True}, "a different use of rsLoRA: it has False, and this run has True"),
        ({"use_dora": True}, "a different use of DoRA: it has False, and this run has True"),
        ({"warmup_steps": 3}, "a different number of warm-up steps: it has None, and this run has 3"),
    ):
        with pytest.raises(SpecInvalid, match=reason):
            resumed_of("ipo", folder, **fields).train(kept / "checkpoint-1")


def test_a_checkpoint_that_names_no_options_had_the_defaults(folder: Path) -> None:
    """Versions before the options wrote none of them."""
    trainer = trainer_of("ipo", folder, 2)
    inner = trainer.prepare()
    written = ("method", "use of LoRA", "batch size", "gradient accumulation", "learning rate", "schedule", "beta")
    inner.identity = {name: inner.identity[name] for name in (*written, "data plan", "warm-up")}
    with pytest.raises(Stopped):
        trainer.train()
    checkpoint = newest_verified([folder / "out"])
    assert checkpoint is not None
    with pytest.raises(
        SpecInvalid, match=r"a different optimizer: it has adamw_torch_fused, and this run has adamw_torch\."
    ):
        resumed_of("ipo", folder, optim="adamw_torch").train(checkpoint)
    again = resumed_of("ipo", folder)
    again.train(checkpoint)
    assert again.trainer.state.global_step == STEPS


# -- what TRL and peft get


def test_the_options_reach_trl(folder: Path) -> None:
    plain = trainer_of("ipo", folder).get_training_arguments()
    assert (plain.optim, plain.adam_beta1, plain.adam_beta2, plain.adam_epsilon) == ("adamw_torch_fused", 0.9, 0.999, 1e-8)
    assert (plain.warmup_steps, plain.eval_steps, plain.save_steps) == (0.1, 4, 2)
    chosen = trainer_of(
        "ipo",
        folder,
        optim="adamw_torch",
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-6,
        warmup_steps=4,
        lr_scheduler_type="cosine_with_min_lr",
        min_lr_rate=0.1,
        eval_steps="epoch",
        save_steps=0.4,
    ).get_training_arguments()
    assert (chosen.optim, chosen.adam_beta1, chosen.adam_beta2, chosen.adam_epsilon) == ("adamw_torch", 0.8, 0.95, 1e-6)
    assert (chosen.warmup_steps, chosen.lr_scheduler_type) == (4, "cosine_with_min_lr")
    assert chosen.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    # transformers' own reading of a share: ceil(0.4 · 6).
    assert (chosen.eval_steps, chosen.save_steps) == (STEPS_AN_EPOCH, 3)


def test_the_default_optimizer_is_the_one_of_transformers(folder: Path) -> None:
    """Else runs of earlier versions would not resume as they began."""
    arguments = trainer_of("ipo", folder).get_training_arguments()
    assert arguments.optim == type(arguments)(output_dir=str(folder / "out"), use_cpu=True, report_to=[]).optim


@pytest.mark.parametrize("method", METHODS)
def test_the_options_reach_peft(method: str, folder: Path) -> None:
    trainer = trainer_of(method, folder, lora_dropout=0.25, use_rslora=True, use_dora=True, lora_r=4)
    trainer.prepare()
    trainer.save_model()
    saved = json.loads((folder / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert {name: saved[name] for name in ("lora_dropout", "use_rslora", "use_dora")} == {
        "lora_dropout": 0.25,
        "use_rslora": True,
        "use_dora": True,
    }
    layers = [layer for layer in trainer.model.modules() if hasattr(layer, "lora_A")]
    assert layers
    for layer in layers:
        assert layer.scaling["default"] == trainer.config.lora_scaling == 32 / 2
        assert layer.lora_dropout["default"].p == 0.25, "TRL switches every dropout off"
        assert "default" in layer.lora_magnitude_vector


# -- dropout


@pytest.mark.parametrize("method", METHODS)
def test_dropout_acts_in_training_and_nowhere_else(method: str, folder: Path) -> None:
    """The reference is asked while the model is in training mode; its answers must not depend on the random state."""
    adapter = make_adapter(str(folder / "model"), folder / "adapter", lora_dropout=0.5)
    fields = {"adapter_name": str(adapter), "adapter_reference": "adapter", "lora_dropout": 0.5}
    trainer = trainer_of(method, folder, **fields)
    inner = trainer.prepare()
    for layer in trainer.model.modules():
        if hasattr(layer, "lora_A"):
            assert isinstance(layer.lora_dropout["ref"], nn.Identity)
    batch = inner._prepare_inputs(next(iter(inner.get_train_dataloader())))
    trainer.model.train()
    losses = [inner.compute_loss(trainer.model, dict(batch)).item() for _ in range(2)]
    assert losses[0] != losses[1]
    if SETTINGS_OF[method].loss_needs_reference:
        asked = [inner.compute_ref_log_probs(trainer.model, dict(batch)) for _ in range(2)]
        assert_same(list(asked[0]), list(asked[1]))
    first, second = trainer.evaluate_model(), trainer.evaluate_model()
    named = [name for name in first if not name.endswith(("_runtime", "_per_second"))]
    assert {name: first[name] for name in named} == {name: second[name] for name in named}
    answers = [trainer.generate_with_comparison("ما عاصمة مصر؟", max_length=8, temperature=0) for _ in range(2)]
    assert answers[0]["proof"] == answers[1]["proof"]
    assert answers[0]["proof"]["max_logit_difference"] == 0, "before the first step both sides are the adapter"


def test_dropout_gives_the_same_gradients_when_activations_are_recomputed(folder: Path) -> None:
    norms = []
    for checkpointing in (False, True):
        trainer = trainer_of("ipo", folder, max_steps=2, lora_dropout=0.5, gradient_checkpointing=checkpointing)
        trainer.train()
        norms.append([entry["grad_norm"] for entry in trainer.trainer.state.log_history if "grad_norm" in entry])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_dropout_takes_the_plain_path_and_says_why(folder: Path) -> None:
    trainer = trainer_of("ipo", folder, max_steps=1, lora_dropout=0.1)
    trainer.train()
    found = trainer.metadata()["acceleration"]
    assert found["path"] == "plain"
    assert "would share its mask" in found["plain_because"]["model"]
    assert "would share its mask" in trainer.observer.warnings["plain_path"]


def test_an_adapters_own_dropout_is_off_unless_asked_for_and_reported(folder: Path) -> None:
    adapter = make_adapter(str(folder / "model"), folder / "dropping", lora_dropout=0.5)
    trainer = trainer_of("ipo", folder, max_steps=1, adapter_name=str(adapter))
    trainer.train()
    assert "lora_dropout 0.5, but this run uses 0." in trainer.observer.warnings["adapter_dropout"]
    assert trainer.metadata()["acceleration"]["path"] == "shared_prompt"
    assert json.loads((folder / "out" / "adapter_config.json").read_text(encoding="utf-8"))["lora_dropout"] == 0
    asked = trainer_of("ipo", folder, max_steps=1, adapter_name=str(adapter), lora_dropout=0.5)
    asked.train()
    assert "adapter_dropout" not in asked.observer.warnings
    assert json.loads((folder / "out" / "adapter_config.json").read_text(encoding="utf-8"))["lora_dropout"] == 0.5


# -- DoRA


@pytest.mark.parametrize("method", [ON_LABELS, ON_PAIRS])
def test_dora_on_the_fast_path_trains_as_on_the_plain_one(method: str, folder: Path) -> None:
    histories = []
    for acceleration, path in (("auto", "shared_prompt"), ("off", "plain")):
        trainer = trainer_of(method, folder, max_steps=3, use_dora=True, acceleration=acceleration, logging_steps=1)
        trainer.train()
        assert trainer.metadata()["acceleration"]["path"] == path
        history = trainer.trainer.state.log_history
        histories.append([[entry[name] for name in ("loss", "grad_norm")] for entry in history if "grad_norm" in entry])
    assert histories[0] == [pytest.approx(entry, rel=2e-4) for entry in histories[1]]


def test_dora_is_compared_and_merged_as_it_trained(folder: Path) -> None:
    trainer = trainer_of("ipo", folder, max_steps=4, use_dora=True, learning_rate=1e-2)
    trainer.train()
    _, pair = load_pair(folder / "out", lambda name: name)
    proof = pair.compare("ما عاصمة مصر؟", max_new_tokens=4, temperature=0).proof
    expected = trainer.generate_with_comparison("ما عاصمة مصر؟", max_length=4, temperature=0)["proof"]
    assert proof.max_logit_difference == pytest.approx(expected["max_logit_difference"], rel=1e-4)
    assert proof.max_logit_difference > 0.01
    told = merge(folder / "out", folder / "merged", lambda name: name)
    assert told["max_logit_difference"] < 1e-4


def test_dora_holds_its_base_in_4_bit(folder: Path) -> None:
    wide = make_model(folder / "wide", hidden_size=64)
    trainer = trainer_of("ipo", folder, model_name=wide, max_steps=2, use_dora=True, lora_dropout=0.1, load_in_4bit=True)
    trainer.train()
    assert trainer.effect is not None


def test_full_fine_tuning_takes_the_optimizer(folder: Path) -> None:
    trainer = trainer_of("cpo", folder, max_steps=2, use_lora=False, optim="adafactor")
    trainer.train()
    state = next(iter(trainer.trainer.optimizer.state.values()))
    assert type(trainer.trainer.optimizer.optimizer).__name__ == "Adafactor"
    assert "exp_avg" not in state, "no first moment"


# -- refused before a model loads


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"optim": "paged_adamw_8bit"},
            "paged_adamw_8bit moves its state .* set optim to one of: adamw_8bit, adamw_torch_fused",
        ),
        ({"optim": "paged_adamw_32bit"}, "paged_adamw_32bit moves its state .* set optim to one of: adamw_torch_fused$"),
        ({"adapter_name": "plain", "use_dora": True}, "use_dora is true, but the adapter .* was made without DoRA"),
        ({"adapter_name": "plain", "use_rslora": True}, "use_rslora is true, but the adapter"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_loads(fields: dict[str, Any], reason: str, folder: Path) -> None:
    if torch.cuda.is_available() and "optim" in fields:
        pytest.skip("pages on a GPU")
    if "adapter_name" in fields:
        fields = {**fields, "adapter_name": str(make_adapter(str(folder / "model"), folder / "plain"))}
    trainer = trainer_of("ipo", folder, **fields)
    with pytest.raises(TafdilError, match=reason):
        trainer.load()
    assert trainer.model is None


def test_a_broken_bitsandbytes_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    monkeypatch.delattr(bitsandbytes.optim, "AdamW")
    with pytest.raises(SpecInvalid, match="the optimizer adamw_8bit needs bitsandbytes, which does not work here"):
        trainer_of("ipo", folder, optim="adamw_8bit").load()
