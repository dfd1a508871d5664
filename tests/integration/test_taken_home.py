"""What a training saves is right for another machine: the base by its name, and answers in the base's dtype."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY_MODEL
from tests.fakes import RecordingObserver
from tests.training import PROMPT, config, make_model
from trainer_core import PreferenceTrainer
from trainer_core.comparison import load_pair
from trainer_core.merging import merge
from trainer_core.models import answering_dtype, load_model
from trainer_core.warm import WarmPairs

NAME = "acme/base"


def place(name: str) -> str:
    """The service's way from names to directories."""
    return str(TINY_MODEL) if name == NAME else name


def train(output: Path, **fields: Any) -> PreferenceTrainer:
    settings = config("ipo", output, **{"model_name": NAME, "max_steps": 2, **fields})
    trainer = PreferenceTrainer(settings, locate=place, observer=RecordingObserver())
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "first"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", _no_hub)
        train(folder)
    return folder


def _no_hub(*asked: Any, **_: Any) -> None:
    raise AssertionError(f"saving asks the hub for {asked}")


def configs(folder: Path) -> dict[str, str]:
    found = folder.rglob("adapter_config.json")
    return {
        path.parent.relative_to(folder).as_posix(): json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
        for path in found
    }


def test_every_adapter_names_its_base(trained: Path, tmp_path: Path) -> None:
    assert configs(trained) == {".": NAME, "checkpoint-2": NAME}
    assert all(str(TINY_MODEL) not in path.read_text(encoding="utf-8") for path in trained.rglob("README.md"))
    assert len(list(trained.rglob("README.md"))) == 2
    # One that an earlier version saved, with the directory of its base.
    file = trained / "adapter_config.json"
    saved = file.read_text(encoding="utf-8")
    file.write_text(saved.replace(NAME, "/srv/models/gone"), encoding="utf-8")
    try:
        train(tmp_path / "second", adapter_name=str(trained))
        answered = load_pair(trained, place)[1].compare(PROMPT, max_new_tokens=4)
    finally:
        file.write_text(saved, encoding="utf-8")
    assert answered == load_pair(trained, place)[1].compare(PROMPT, max_new_tokens=4)
    names = configs(tmp_path / "second")
    assert {".", "ref", "checkpoint-2"} <= names.keys()
    assert set(names.values()) == {NAME}


def test_a_checkpoint_of_an_earlier_version_is_resumed_and_named_anew(tmp_path: Path) -> None:
    from trainer_core.checkpoints import MANIFEST, verified_step

    output = tmp_path / "run"
    train(output, save_steps=1)
    first = output / "checkpoint-1"
    file = first / "adapter_config.json"
    file.write_text(file.read_text(encoding="utf-8").replace(NAME, "/srv/models/gone"), encoding="utf-8")
    (first / "README.md").unlink()
    manifest = json.loads((first / MANIFEST).read_text(encoding="utf-8"))
    import hashlib

    manifest["files"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    del manifest["files"]["README.md"]
    (first / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    assert verified_step(first) == 1
    settings = config("ipo", tmp_path / "again", model_name=NAME, max_steps=2, save_steps=1)
    resumed = PreferenceTrainer(settings, locate=place, observer=RecordingObserver())
    resumed.train(resume_from_checkpoint=first)
    assert set(configs(tmp_path / "again").values()) == {NAME}


def test_a_saved_model_answers_in_the_dtype_of_its_base(trained: Path) -> None:
    """The base is stored in bfloat16 and trained in float32; fingerprints are of the weights as they trained."""
    metadata = json.loads((trained / "ipo_metadata.json").read_text(encoding="utf-8"))
    assert (metadata["precision"], metadata["dtype"]) == ("fp32", "bfloat16")
    pair = load_pair(trained, place)[1]
    found = pair.compare(PROMPT, max_new_tokens=4)
    assert found.dtype == "bfloat16"
    assert {tensor.dtype for tensor in pair.reference.parameters()} == {torch.bfloat16}
    assert found.proof.trained_fingerprint == metadata["weights_sha256"]
    assert found.proof.reference_fingerprint == metadata["base_weights_sha256"]
    pairs = WarmPairs(2**40, place)
    pairs.get("aa", trained)
    base = load_model(str(TINY_MODEL), torch.bfloat16)
    adapter = 4 * sum(tensor.numel() for name, tensor in pair.policy.named_parameters() if "lora_" in name)
    assert pairs.bytes == adapter + 2 * sum(tensor.numel() for tensor in base.parameters())


def test_whole_weights_answer_as_they_are_saved(tmp_path: Path) -> None:
    live = train(tmp_path / "whole", use_lora=False, precision="bf16")
    assert live.generate_with_comparison(PROMPT, max_length=4)["dtype"] == "bfloat16", "under autocast"
    answer = load_pair(tmp_path / "whole", place)[1].compare(PROMPT, max_new_tokens=4)
    assert answer.dtype == "float32"
    card = (tmp_path / "whole" / "README.md").read_text(encoding="utf-8")
    assert 'transformers.AutoModelForCausalLM.from_pretrained(".", dtype="float32")' in card
    assert str(TINY_MODEL) not in card


def test_a_live_trainer_says_in_which_dtype_it_answers(tmp_path: Path) -> None:
    live = train(tmp_path / "half", precision="bf16")
    assert live.generate_with_comparison(PROMPT, max_length=4)["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("named", "expected"),
    [("float16", torch.float16), ("bfloat16", torch.bfloat16), (None, torch.float32), ("float8_e4m3fn", torch.float32)],
)
def test_the_dtype_that_a_config_names(named: str | None, expected: torch.dtype, tmp_path: Path) -> None:
    make_model(tmp_path)
    file = tmp_path / "config.json"
    for key in ("dtype", "torch_dtype"):
        content = json.loads(file.read_text(encoding="utf-8"))
        content = {name: value for name, value in content.items() if name not in ("dtype", "torch_dtype")}
        file.write_text(json.dumps({**content, key: named} if named else content), encoding="utf-8")
        assert answering_dtype(str(tmp_path)) == expected


def test_merging_is_as_exact_as_the_base(tmp_path: Path) -> None:
    """A base in float32 that trained in bfloat16 is compared in float32, and merged so."""
    base = make_model(tmp_path / "base")
    output = tmp_path / "out"
    settings = config("ipo", output, model_name=base, precision="bf16", max_steps=2)
    PreferenceTrainer(settings, observer=RecordingObserver()).train()
    found = load_pair(output, lambda name: name)[1].compare(PROMPT, max_new_tokens=4)
    assert found.dtype == "float32"
    assert merge(output, tmp_path / "merged")["dtype"] == "float32"
