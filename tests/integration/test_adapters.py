"""An adapter loads whole or is refused, wherever one is loaded; where it can be, before any weights load."""

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapters import EMBEDDINGS, FILE, FITTING, MISFITS, Q_PROJ, make_adapter, renamed, rewrite, with_value
from tests.conftest import TINY_MODEL
from tests.fakes import RecordingObserver
from tests.training import PROMPT, config, make_model
from trainer_core import PreferenceTrainer, adapters
from trainer_core.checkpoints import MANIFEST, verified_step
from trainer_core.comparison import Bases, load_pair
from trainer_core.dry_run import dry_run
from trainer_core.errors import ModelRefused
from trainer_core.merging import merge
from trainer_core.models import load_model, same_name


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def plain(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("adapters") / "plain")


@pytest.fixture
def adapter(plain: Path, tmp_path: Path) -> Path:
    """A copy of the plain one, to be harmed."""
    return Path(shutil.copytree(plain, tmp_path / "adapter"))


def refused(base: str, adapter: Path, message: str) -> None:
    """By the dry run and by a run, in the same words, before weights load."""
    said = []
    settings = config("ipo", adapter.parent / "out", model_name=base, adapter_name=str(adapter))
    observer = RecordingObserver()
    trainer = PreferenceTrainer(settings, observer=observer)
    for start in (lambda: dry_run(settings), trainer.load):
        with pytest.raises(ModelRefused, match=message) as raised:
            start()
        said.append(str(raised.value))
    assert said[0] == said[1]
    assert said[0].startswith(f"the adapter “{adapter}” ")
    assert trainer.model is None
    assert observer.phases == ["preparing"]


@pytest.mark.parametrize("kind", FITTING)
def test_an_adapter_of_every_kind_loads_whole(base: str, tmp_path: Path, kind: str) -> None:
    folder = make_adapter(base, tmp_path / "adapter", **FITTING[kind])
    settings = config("ipo", tmp_path / "out", model_name=base, adapter_name=str(folder))
    assert dry_run(settings)["plan"]["optimizer_steps"] == 4
    trainer = PreferenceTrainer(settings, observer=RecordingObserver())
    trainer.load()
    live = adapters.tensors(trainer.model, "default")
    stored = {name: tensor for name, tensor in load_file(folder / FILE).items() if "lora_" in name}
    assert live.keys() == stored.keys()
    assert all(torch.equal(live[name], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize("kind", MISFITS)
def test_an_adapter_that_does_not_fit_is_refused_before_weights_load(base: str, adapter: Path, kind: str) -> None:
    change, message = MISFITS[kind]
    refused(base, rewrite(adapter, change), message)


@pytest.mark.parametrize("kind", MISFITS)
def test_it_is_refused_as_well_where_nothing_looked_before(base: str, adapter: Path, plain: Path, kind: str) -> None:
    """On a base of its own, and on one that other adapters share: their answers stay as they were."""
    rewrite(adapter, MISFITS[kind][0])
    with pytest.raises(ModelRefused, match="the adapter"):
        adapters.load(load_model(base, torch.float32), str(adapter), "default")
    shared = adapters.load(load_model(base, torch.float32), str(plain), "good")
    before = {name: tensor.clone() for name, tensor in shared.named_parameters()}
    with pytest.raises(ModelRefused, match="the adapter"):
        adapters.load(shared, str(adapter), "bad")
    after = dict(shared.named_parameters())
    assert list(shared.peft_config) == ["good"]
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "header too small"), (b"\xff" * 100, "header"), (None, "not fully covered")],
    ids=["empty", "noise", "cut"],
)
def test_a_broken_file_is_the_adapters_fault(base: str, adapter: Path, content: bytes | None, message: str) -> None:
    whole = (adapter / FILE).read_bytes()
    (adapter / FILE).write_bytes(whole[:-10] if content is None else content)
    refused(base, adapter, f"could not be loaded: {FILE} is not a complete safetensors file .*{message}.* copy it again")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["qq_proj"]}, "could not be loaded: “Target modules .*qq_proj.* not found in the base model"),
        ({"target_modules": ".*lm_head"}, "adapts lm_head, which the fused loss would ignore"),
        ({"r": "four"}, "could not be loaded: “TypeError"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "has layer_replication"),
    ],
)
def test_a_config_that_the_base_cannot_follow_is_refused(
    base: str, adapter: Path, fields: dict[str, Any], message: str
) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    refused(base, adapter, message)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa"),
        ({"init_lora_weights": "olora"}, "init_lora_weights olora"),
        ({"lora_alpha": 0}, "lora_alpha 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan"),
        ({"target_modules": 5}, "target_modules 5"),
    ],
)
def test_settings_that_would_train_nothing_or_another_base_are_refused(
    base: str, adapter: Path, setting: dict[str, Any], message: str
) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **setting}), encoding="utf-8")
    refused(base, adapter, message)


def test_nan_in_a_base_is_the_bases_fault(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "q_proj.weight" in name)
    weights[name][0, 0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    trainer = PreferenceTrainer(config("ipo", tmp_path / "out", model_name=model), observer=RecordingObserver())
    with pytest.raises(ModelRefused, match=f"contain NaN or infinity in {name}"):
        trainer.train()


def test_embeddings_of_another_vocabulary_are_refused_with_both_counts(base: str, tmp_path: Path) -> None:
    folder = make_adapter(base, tmp_path / "resized", vocabulary=980)
    refused(base, folder, r"its embeddings \(.*\) have 980 rows, but the model's vocabulary has 1,252")


@pytest.mark.parametrize("model", ["untied", "tied"])
def test_saved_embeddings_must_be_those_of_the_model(base: str, tmp_path: Path, model: str) -> None:
    name = base if model == "untied" else str(TINY_MODEL)
    folder = make_adapter(name, tmp_path / "adapter", with_embeddings=True)
    assert EMBEDDINGS in load_file(folder / FILE)
    trainer = PreferenceTrainer(config("ipo", tmp_path / "out", model_name=name, adapter_name=str(folder), max_steps=1))
    trainer.prepare()
    trainer.check_reference()
    rewrite(folder, with_value(EMBEDDINGS, 0.5))
    refused(name, folder, r"contains trained embeddings \(.*embed_tokens.*\), which cannot be switched off for the")
    with pytest.raises(ModelRefused, match="trained embeddings"):
        adapters.load(load_model(name, torch.float32), str(folder), "default")


def test_embeddings_that_were_saved_rounded_leave_the_model_as_it_is(base: str, tmp_path: Path) -> None:
    folder = make_adapter(base, tmp_path / "adapter", with_embeddings=True)
    rewrite(folder, lambda weights: {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()})
    trainer = PreferenceTrainer(config("ipo", tmp_path / "out", model_name=base, adapter_name=str(folder), max_steps=1))
    trainer.prepare()
    trainer.check_reference()
    exact = load_model(base, torch.float32).get_input_embeddings().weight
    assert torch.equal(trainer.model.get_input_embeddings().weight, exact)
    assert not torch.equal(exact, exact.to(torch.bfloat16).float())


def test_what_was_loaded_is_compared_with_the_file(base: str, plain: Path) -> None:
    policy = adapters.load(load_model(base, torch.float32), str(plain), "default")
    adapters.check_loaded(policy, str(plain), "default")
    with torch.no_grad():
        policy.get_parameter(f"{Q_PROJ}.lora_B.default.weight")[0, 0] += 1
    with pytest.raises(ModelRefused, match=r"did not load correctly: .*lora_B.* differs from its file"):
        adapters.check_loaded(policy, str(plain), "default")


def test_an_adapter_in_half_precision_is_compared_at_the_dtype_that_trains(base: str, adapter: Path) -> None:
    rewrite(adapter, lambda weights: {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()})
    policy = adapters.load(load_model(base, torch.bfloat16), str(adapter), "default", is_trainable=True)
    assert policy.get_parameter(f"{Q_PROJ}.lora_B.default.weight").dtype == torch.float32


def test_an_adapter_in_the_cache_of_the_hub_is_checked_there(
    base: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = {}
    for name, source in (("model", Path(base)), ("adapter", adapter)):
        repository = tmp_path / "hub" / f"models--someone--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        snapshots[name] = Path(shutil.copytree(source, repository / "snapshots" / ("0" * 40)))
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    names = {"model_name": "someone/model", "adapter_name": "someone/adapter"}
    settings = config("ipo", tmp_path / "out", **names, max_steps=1)
    trainer = PreferenceTrainer(settings, observer=RecordingObserver())
    trainer.prepare()
    trainer.check_reference()
    rewrite(snapshots["adapter"], renamed("v_proj", "w_proj"))
    for start in (lambda: dry_run(settings), PreferenceTrainer(settings).load):
        with pytest.raises(ModelRefused, match="the adapter “someone/adapter” does not match"):
            start()


# -- results and checkpoints


@pytest.fixture(scope="module")
def result(base: str, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from an adapter that is its own reference, with a checkpoint."""
    folder = tmp_path_factory.mktemp("result") / "out"
    fields = {"adapter_name": str(plain), "adapter_reference": "adapter", "max_steps": 2, "save_steps": 1}
    PreferenceTrainer(config("ipo", folder, model_name=base, **fields), observer=RecordingObserver()).train()
    return folder


@pytest.mark.parametrize("place", [".", "ref"])
def test_a_result_whose_adapter_is_not_whole_answers_nothing(result: Path, tmp_path: Path, place: str) -> None:
    folder = Path(shutil.copytree(result, tmp_path / "out"))
    assert load_pair(folder, same_name)[1].compare(PROMPT, max_new_tokens=2).proof.trained_fingerprint
    rewrite(folder / place, renamed("q_proj", "p_proj"))
    shared = Bases()
    load_pair(result, same_name, shared, "good")
    for bases in (None, shared):
        with pytest.raises(ModelRefused, match=r"the adapter .* does not match"):
            load_pair(folder, same_name, bases, "bad")
        shared.release("bad")
    if place == ".":
        with pytest.raises(ModelRefused, match=r"the adapter .* does not match"):
            merge(folder, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()


def sign(checkpoint: Path) -> None:
    """A manifest that fits what is there."""
    found = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST]
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"] = {path.relative_to(checkpoint).as_posix(): sha256(path.read_bytes()).hexdigest() for path in found}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("place", [".", "ref"])
@pytest.mark.parametrize("step", [1, 2])
def test_a_checkpoint_whose_adapter_is_not_whole_is_not_resumed(
    base: str, plain: Path, result: Path, tmp_path: Path, place: str, step: int
) -> None:
    """In the middle of a run, and at its end, where the weights alone are loaded."""
    folder = Path(shutil.copytree(result, tmp_path / "out"))
    checkpoint = folder / f"checkpoint-{step}"
    rewrite(checkpoint / place, renamed("q_proj", "p_proj"))
    sign(checkpoint)
    assert verified_step(checkpoint) == step
    fields = {"adapter_name": str(plain), "adapter_reference": "adapter", "max_steps": 2, "save_steps": 1}
    trainer = PreferenceTrainer(config("ipo", folder, model_name=base, **fields), observer=RecordingObserver())
    with pytest.raises(ModelRefused, match=r"the adapter .* does not match"):
        trainer.train(resume_from_checkpoint=checkpoint)


def test_a_checkpoint_without_some_of_its_weights_is_not_resumed(base: str, tmp_path: Path) -> None:
    settings = config("cpo", tmp_path / "out", model_name=base, use_lora=False, max_steps=2, save_steps=1)
    PreferenceTrainer(settings, observer=RecordingObserver()).train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    weights = load_file(checkpoint / "model.safetensors")
    kept = {name: tensor.clone() for name, tensor in weights.items() if "layers.1" not in name}
    save_file(kept, checkpoint / "model.safetensors", {"format": "pt"})
    sign(checkpoint)
    with pytest.raises(ModelRefused, match=r"lack 12 weights \(the first is model\.layers\.1"):
        PreferenceTrainer(settings, observer=RecordingObserver()).train(resume_from_checkpoint=checkpoint)
