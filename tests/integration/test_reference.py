"""The reference is the one that the config names, in every shape it can have, or the training fails."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fakes import RecordingObserver
from tests.training import METHODS, PROMPT, config, crossed, make_model, some_rows, write_rows
from trainer_core import PreferenceTrainer
from trainer_core.comparison import load_pair
from trainer_core.config import SETTINGS_OF
from trainer_core.errors import ReferenceMismatch
from trainer_core.fingerprints import adapter_tensors, base_tensors, fingerprint
from trainer_core.reference import FrozenView

SHAPES: list[dict[str, Any]] = [
    {},
    {"use_lora": False, "learning_rate": 1e-4},
    {"load_in_4bit": True},
    {"use_lora": False, "load_in_4bit": True, "learning_rate": 1e-4},
    {"ref_load_in_4bit": True},
    {"load_in_4bit": True, "ref_load_in_4bit": False},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model, another one, and rows of both kinds."""
    folder = tmp_path_factory.mktemp("reference")
    # 4-bit weights come in blocks of 64.
    make_model(folder / "model", hidden_size=64)
    make_model(folder / "other", "qwen3")
    for method in METHODS:
        write_rows(folder / f"{method}.jsonl", some_rows(method, 32))
    return folder


def trainer_of(method: str, place: Path, out: Path, **fields: Any) -> PreferenceTrainer:
    base = {
        "model_name": str(place / "model"),
        "dataset_path": str(place / f"{method}.jsonl"),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
    }
    return PreferenceTrainer(config(method, out, **{**base, **fields}), observer=RecordingObserver())


def frozen_part(trainer: PreferenceTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer._reference_for_scoring().named_parameters()}


@pytest.mark.parametrize(("method", "fields"), crossed(SHAPES))
def test_every_shape_trains_against_a_reference_that_stays(
    method: str, fields: dict[str, Any], place: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(method, place, tmp_path, **fields)
    trainer.setup_reference_model()
    assert trainer.ref_model is not None
    assert next(trainer.ref_model.parameters()).device == trainer.model.device
    before = frozen_part(trainer)
    start = fingerprint([*base_tensors(trainer.model), *adapter_tensors(trainer.model, "default")])
    trainer.train()
    assert {name: torch.equal(before[name], tensor) for name, tensor in frozen_part(trainer).items()} == dict.fromkeys(
        before, True
    )
    assert fingerprint([*base_tensors(trainer.model), *adapter_tensors(trainer.model, "default")]) != start

    metadata = json.loads((tmp_path / f"{method}_metadata.json").read_text(encoding="utf-8"))
    kind = "base" if metadata["use_lora"] and metadata["load_in_4bit"] == metadata["ref_load_in_4bit"] else "model"
    assert metadata["reference"] == kind
    assert isinstance(trainer.ref_model, FrozenView) is (kind == "base")
    live = trainer.generate_with_comparison(PROMPT, max_length=4)["proof"]
    assert live["trained_fingerprint"] == metadata["weights_sha256"]
    assert live["reference_fingerprint"] == metadata["reference_sha256"]
    assert live["max_logit_difference"] > 0
    again = load_pair(tmp_path, lambda name: name)[1].compare(PROMPT, max_new_tokens=4).proof
    assert again.as_dict() == pytest.approx(live)


@pytest.mark.parametrize("other", [None, "other"])
def test_cpo_loads_a_second_model_only_when_it_is_asked_for(other: str | None, place: Path, tmp_path: Path) -> None:
    fields = {"use_lora": False, "learning_rate": 1e-4, "ref_model_name": str(place / other) if other else None}
    trainer = trainer_of("cpo", place, tmp_path, **fields)
    trainer.train()
    assert trainer._known_reference() is None
    metadata = json.loads((tmp_path / "cpo_metadata.json").read_text())
    weights = load_file(place / (other or "model") / "model.safetensors")
    expected = fingerprint(weights.items())
    # Without a copy the reference is known by the weights that training began with, when it is the same model.
    assert metadata["reference_sha256"] == (None if other else expected)
    assert trainer.generate_with_comparison(PROMPT, max_length=4)["proof"]["reference_fingerprint"] == expected
    pair = load_pair(tmp_path, lambda name: name)[1]
    assert pair.compare(PROMPT, max_new_tokens=4).proof.reference_fingerprint == expected


def test_4_bit_weights_are_held_in_4_bit(place: Path, tmp_path: Path) -> None:
    trainer = trainer_of("ipo", place, tmp_path, load_in_4bit=True)
    trainer.train()
    layer = trainer.model.get_base_model().model.layers[0].mlp.up_proj
    assert layer.base_layer.weight.dtype is torch.uint8
    assert layer.lora_A["default"].weight.dtype is torch.float32, "what trains is not rounded"
    assert load_file(tmp_path / "adapter_model.safetensors")


def test_weights_of_another_scale_have_another_fingerprint_in_4_bit() -> None:
    from bitsandbytes.nn import Params4bit

    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    one, two = (Params4bit(weights * scale, requires_grad=False).to("cpu") for scale in (1, 2))
    assert torch.equal(one, two), "in 4 bit the weights are the same codes"
    assert fingerprint([("weight", one)]) != fingerprint([("weight", two)])


# -- a wrong reference


def test_a_reference_with_other_weights_than_its_files(place: Path, tmp_path: Path) -> None:
    trainer = trainer_of("ipo", place, tmp_path, use_lora=False)
    trainer.setup_reference_model()
    with torch.no_grad():
        next(iter(trainer.ref_model.parameters()))[0, 0] += 1e-4
    with pytest.raises(ReferenceMismatch, match=r"embed_tokens\.weight is not what model\.safetensors contains"):
        trainer.train()


@pytest.mark.parametrize("method", METHODS)
def test_a_base_that_was_changed_under_its_adapter(method: str, place: Path, tmp_path: Path) -> None:
    trainer = trainer_of(method, place, tmp_path)
    trainer.load()
    with torch.no_grad():
        dict(base_tensors(trainer.model))["model.layers.0.mlp.up_proj.weight"].mul_(1.001)
    with pytest.raises(ReferenceMismatch, match="up_proj"):
        trainer.train()


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_that_is_not_new(method: str, place: Path, tmp_path: Path) -> None:
    """The files agree, but policy and reference do not answer alike before the first step."""
    trainer = trainer_of(method, place, tmp_path)
    trainer.load()
    with torch.no_grad():
        for name, tensor in adapter_tensors(trainer.model, "default"):
            if "lora_B" in name:
                tensor.add_(0.1)
    with pytest.raises(ReferenceMismatch, match="log-probabilities differ by"):
        trainer.train()


def test_a_reference_that_trains_along(place: Path, tmp_path: Path) -> None:
    trainer = trainer_of("kto", place, tmp_path)
    inner = trainer.prepare()
    step = inner.training_step

    def leak(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            dict(base_tensors(trainer.model))["model.norm.weight"].add_(1e-3)
        return step(*args, **kwargs)

    inner.training_step = leak
    with pytest.raises(ReferenceMismatch, match="changed during training"):
        trainer.train()
    assert not (tmp_path / "kto_metadata.json").exists(), "a model with a wrong reference is not published"


@pytest.mark.parametrize(("method", "use_lora"), crossed([True, False]))
def test_another_model_as_reference_trains(method: str, use_lora: bool, place: Path, tmp_path: Path) -> None:
    fields = {"ref_model_name": str(place / "other"), "use_lora": use_lora, "learning_rate": 1e-4}
    trainer = trainer_of(method, place, tmp_path, **fields)
    trainer.train()
    proof = trainer.generate_with_comparison(PROMPT, max_length=4)["proof"]
    weights = load_file(place / "other" / "model.safetensors")
    assert proof["reference_fingerprint"] == fingerprint(weights.items())


# -- going on from an adapter


@pytest.fixture(scope="module")
def adapter(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that an earlier training left, far from its base."""
    out = tmp_path_factory.mktemp("adapter")
    trainer_of("cpo", place, out, lora_r=4, lora_alpha=8).train()
    weights = load_file(out / "adapter_model.safetensors")
    save_file({name: tensor + 0.05 for name, tensor in weights.items()}, out / "adapter_model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize(
    ("method", "shape"), crossed([(of, in_4bit) for of in ("adapter", "base") for in_4bit in (False, True)])
)
def test_going_on_from_an_adapter(method: str, shape: tuple[Any, bool], place: Path, adapter: Path, tmp_path: Path) -> None:
    reference, in_4bit = shape
    fields = {"adapter_name": str(adapter), "adapter_reference": reference, "load_in_4bit": in_4bit}
    trainer = trainer_of(method, place, tmp_path, **fields)
    before = trainer.generate_with_comparison(PROMPT, max_length=4)["proof"]
    assert before["adapter_has_no_effect"] is (reference == "adapter")
    stored = load_file(adapter / "adapter_model.safetensors")
    assert {name: tensor.tolist() for name, tensor in adapter_tensors(trainer.model, "default")} == {
        name: tensor.tolist() for name, tensor in stored.items()
    }
    trainer.train()
    observer: Any = trainer.observer
    first = next(values for _, values in observer.points if "loss" in values)
    if SETTINGS_OF[method].loss_needs_reference:
        assert (first["rewards/chosen"] == pytest.approx(0, abs=1e-5)) is (reference == "adapter")

    proof = trainer.generate_with_comparison(PROMPT, max_length=4)["proof"]
    assert proof["reference_fingerprint"] == before["reference_fingerprint"]
    assert proof["trained_fingerprint"] != before["trained_fingerprint"]
    assert (tmp_path / "ref").is_dir() is (reference == "adapter")
    again = load_pair(tmp_path, lambda name: name)[1].compare(PROMPT, max_new_tokens=4).proof
    assert again.as_dict() == pytest.approx(proof)


@pytest.mark.parametrize("method", METHODS)
def test_going_on_from_an_adapter_resumes_exactly(method: str, place: Path, adapter: Path, tmp_path: Path) -> None:
    fields = {"adapter_name": str(adapter), "save_steps": 1, "learning_rate": 1e-3}
    trainer_of(method, place, tmp_path / "whole", **fields).train()
    resumed = trainer_of(method, place, tmp_path / "resumed", **fields)
    resumed.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2")
    whole, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_the_wrong_adapter_as_reference_is_noticed(place: Path, adapter: Path, tmp_path: Path) -> None:
    trainer = trainer_of("ipo", place, tmp_path, adapter_name=str(adapter))
    trainer.load()
    with torch.no_grad():
        next(tensor for _, tensor in adapter_tensors(trainer.model, "ref")).add_(1e-3)
    with pytest.raises(ReferenceMismatch, match=r"is not what adapter_model\.safetensors contains"):
        trainer.train()
