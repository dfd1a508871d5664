"""The dry run: what it says of a training is what the training then does."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DATA, TINY_MODEL
from tests.fakes import RecordingObserver
from tests.training import CONFIGS, ON_LABELS, ON_PAIRS, held_out, make_model, on_labels, train_file
from trainer_core import IPOConfig, PreferenceTrainer
from trainer_core.config import HEADLINE
from trainer_core.dry_run import Machine, dry_run, histogram, preview
from trainer_core.errors import DataOverlong, ModelNotFound, SpecInvalid
from trainer_core.estimates import Load, Size, work
from trainer_core.machines import this_machine
from trainer_core.rows import peek_rows


def config(method: str, tmp_path: Path, **fields: Any) -> Any:
    common = {
        "model_name": str(TINY_MODEL),
        "dataset_path": str(DATA / train_file(method)),
        "eval_dataset_path": held_out("ipo", 96),
        "output_dir": str(tmp_path / "out"),
        "max_prompt_length": 24,
        "max_length": 40,
        "max_steps": 3,
        "eval_steps": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    return CONFIGS[method](**{**common, **fields})


@pytest.mark.parametrize("method", HEADLINE)
def test_it_says_what_the_training_then_does(method: str, tmp_path: Path) -> None:
    asked = 2 if on_labels(method) else 0.5
    settings = config(method, tmp_path, eval_steps=asked)
    said = dry_run(settings, this_machine())
    observer = RecordingObserver()
    trainer = PreferenceTrainer(settings, observer=observer)
    trainer.train()
    metadata = json.loads((tmp_path / "out" / f"{method}_metadata.json").read_text(encoding="utf-8"))
    named = ("first_rows_cut", "first_rows_dropped")
    for part in ("train", "validation"):
        rows = metadata["data"][part].pop("first_rows_cut")
        assert said["data"][part]["first_rows_cut"][: len(rows)] == rows
        assert len(said["data"][part]["first_rows_cut"]) > len(rows) == 20
        for name in named:
            said["data"][part].pop(name)
            metadata["data"][part].pop(name, None)
    assert said["data"] == metadata["data"]
    assert said["plan"]["optimizer_steps"] == observer.steps[-1] == 3
    assert said["plan"]["learning_rate"] == metadata["learning_rate"]
    evaluated = {step for step, values in observer.points if "eval_loss" in values}
    assert said["plan"]["evaluations"] == len(evaluated) == 3
    assert {warning["code"] for warning in said["warnings"]} == set(observer.warnings)
    assert sum(bucket["rows"] for bucket in said["lengths"]) == said["data"]["rows_trained_on"]
    speed = metadata["speed"]
    assert speed["steps"] == 3
    assert speed["flops_per_s"] > 0
    assert said["time"]["low_seconds"] < said["time"]["seconds"] < said["time"]["high_seconds"]
    measured = Machine(on_gpu=False, flops_per_s=speed["flops_per_s"], is_measured=True)
    again = dry_run(settings, measured)["time"]
    assert again["basis"] == "earlier runs of this model"
    # Its steps are the measured ones; the rest is three evaluations.
    assert again["seconds"] > speed["seconds"]


@pytest.mark.parametrize("method", [ON_LABELS, ON_PAIRS])
def test_samples_are_what_trains(method: str, tmp_path: Path) -> None:
    settings = config(method, tmp_path)
    samples = dry_run(settings, samples=5)["samples"]
    trainer = PreferenceTrainer(settings, observer=RecordingObserver())
    trainer.load()
    for shown, row in zip(samples, trainer.data_loader.train[:5], strict=True):
        assert shown["row"] == row["row"]
        assert shown["label"] == row.get("label")
        assert [token["id"] for token in shown["prompt"]] == row["prompt_ids"]
        assert not any(token["trained"] for token in shown["prompt"])
        assert "".join(token["text"] for token in shown["prompt"]) == trainer.tokenizer.decode(row["prompt_ids"])
        for name, tokens in shown["answers"].items():
            assert [token["id"] for token in tokens] == row[f"{name}_ids"]
            assert all(token["trained"] for token in tokens)
            assert tokens[-1]["id"] == trainer.tokenizer.eos_token_id


def test_a_letter_of_several_tokens_belongs_to_the_last(tmp_path: Path) -> None:
    found = preview([{"prompt": "س", "chosen": "龍 ☃", "rejected": "لا"}], config("ipo", tmp_path))
    tokens = found[0]["answers"]["chosen"]
    assert "".join(token["text"] for token in tokens).startswith("龍 ☃")
    assert "" in [token["text"] for token in tokens]
    assert not [token for token in tokens if "�" in token["text"]]


def test_it_refuses_what_the_training_would_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where there is no network, the hub would be asked again and again.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataOverlong):
        dry_run(config("ipo", tmp_path, on_overlong="reject"))
    with pytest.raises(ModelNotFound):
        dry_run(config("ipo", tmp_path, model_name="nobody/nothing"))
    with pytest.raises(SpecInvalid, match="max_length"):
        dry_run(config("ipo", tmp_path, max_length=100_000))
    with pytest.raises(SpecInvalid, match="early_stopping"):
        dry_run(config("ipo", tmp_path, eval_dataset_path=None, early_stopping_patience=2))
    assert not (tmp_path / "out").exists()


def test_it_warns_of_what_a_machine_without_a_gpu_would_refuse(tmp_path: Path) -> None:
    """Not a refusal: which machine takes the job is only known then."""
    narrow = make_model(tmp_path / "narrow")

    def warned(machine: Machine, **fields: Any) -> list[str]:
        found = dry_run(config("ipo", tmp_path, **fields), machine)["warnings"]
        return [each["params"]["reason"]["code"] for each in found if each["code"] == "needs_gpu"]

    asked = {"precision": "fp16", "optim": "paged_adamw_8bit", "load_in_4bit": True, "model_name": narrow}
    here, gpu = Machine(on_gpu=False, name="a CPU"), Machine(on_gpu=True)
    assert warned(here, **asked) == ["fp16_needs_gpu", "optim_needs_gpu", "width_not_in_blocks"]
    assert warned(gpu, **asked) == warned(here) == []


def test_memory_grows_with_what_takes_it(tmp_path: Path) -> None:
    def parts(**fields: Any) -> dict[str, int]:
        return dry_run(config("ipo", tmp_path, **fields))["memory"]["parts"]

    lora, full = parts(), parts(use_lora=False)
    assert (lora["reference"], full["adapters"]) == (0, 0)
    assert full["reference"] == full["weights"] == lora["weights"]
    assert full["optimizer"] == 2 * full["gradients"] > 2 * lora["gradients"]
    assert parts(gradient_checkpointing=False)["activations"] > 2 * lora["activations"]
    assert parts(per_device_train_batch_size=8)["activations"] > 1.5 * lora["activations"]
    assert parts(lora_target_modules=["q_proj"])["adapters"] < lora["adapters"]
    assert lora["adapters"] < parts(use_dora=True)["adapters"] < 1.2 * lora["adapters"]
    states = {name: parts(optim=name)["optimizer"] for name in ("adamw_torch", "adamw_8bit", "adafactor")}
    assert states == {"adamw_torch": lora["optimizer"], "adamw_8bit": lora["optimizer"] // 4, "adafactor": 0}
    assert parts(lora_dropout=0.1)["activations"] > lora["activations"], "rows compute their prompts one by one"


def test_sizes_are_those_of_the_weights() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL)
    size = Size.of(model.config.to_dict())
    # Biases of queries, keys and values are left out: a thousandth.
    assert size.weights == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.01)
    rows = [{"prompt_ids": [1] * 5, "chosen_ids": [1] * 3, "rejected_ids": [1] * 4}] * 3
    load = Load.of(rows, rows[:1], IPOConfig(model_name="m", dataset_path="d", per_device_train_batch_size=2))
    assert (load.batches, load.tokens, load.largest_batch_tokens, load.answer_tokens) == (2, 36, 24, 21)
    assert (load.longest, load.validation_tokens) == (12, 12)


def test_the_last_step_of_an_epoch_takes_what_is_left() -> None:
    rows = [{"prompt_ids": [1] * 5, "chosen_ids": [1] * 3, "rejected_ids": [1] * 4}] * 9
    size = Size.of(json.loads((TINY_MODEL / "config.json").read_text(encoding="utf-8")))

    def flops(accumulation: int) -> float:
        settings = IPOConfig(
            model_name="m", dataset_path="d", per_device_train_batch_size=1, gradient_accumulation_steps=accumulation
        )
        return work(settings, size, Load.of(rows, [], settings), checkpointing=False).flops

    assert flops(8) == flops(1) == flops(100)


def test_a_histogram_holds_every_row() -> None:
    assert histogram([1]) == [{"up_to": 1, "rows": 1}]
    lengths = [1, 2, 16, 17, 320]
    found = histogram(lengths)
    assert len(found) == 16
    assert found[-1] == {"up_to": 320, "rows": 1}
    assert sum(bucket["rows"] for bucket in found) == 5
    assert found[0]["rows"] == 4


def test_a_few_rows_are_read_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = '{"prompt": "س", "chosen": "نعم", "rejected": "لا"}\n'
    path.write_text(good * 50_000 + "broken\n", encoding="utf-8")
    assert [row["row"] for row in peek_rows(path, 3, 2)] == [3, 4]
    path.write_text(good * 3, encoding="utf-8")
    assert [row["row"] for row in peek_rows(path, 2, 9)] == [2, 3]
    assert peek_rows(path, 9, 2) == []
    path.write_text(json.dumps({"validation": [json.loads(good)], "train": [json.loads(good)] * 3}), encoding="utf-8")
    assert len(peek_rows(path, 1, 9)) == 3
