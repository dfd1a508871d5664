"""Files of a model that cannot be used are the model's fault, with the reason, in the dry run and in a run alike."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from tests.fakes import RecordingObserver
from tests.training import config, make_model
from trainer_core import PreferenceTrainer, model_files
from trainer_core.dry_run import dry_run
from trainer_core.errors import DiskFull, ModelNotFound, ModelRefused
from trainer_core.loading import loading
from trainer_core.models import load_model

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("whole") / "model"))


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A copy, to be harmed."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def settings(model: Path) -> dict[str, Any]:
    return json.loads((model / "config.json").read_text())


def edit(**fields: Any) -> Callable[[Path], Any]:
    return lambda model: (model / "config.json").write_text(json.dumps({**settings(model), **fields}))


def write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda model: (model / name).write_bytes(content)


def cut(model: Path) -> None:
    path = model / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def lie(model: Path) -> None:
    header = b'{"model.norm.weight":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}'
    (model / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)


def shard(model: Path) -> list[Path]:
    """Splits the weights, and returns the shards."""
    loaded = AutoModelForCausalLM.from_pretrained(model)
    (model / WEIGHTS).unlink()
    loaded.save_pretrained(model, max_shard_size="50KB")
    return sorted(model.glob("model-*.safetensors"))


def lose_a_shard(model: Path) -> None:
    shard(model)[1].unlink()


def cut_a_shard(model: Path) -> None:
    last = shard(model)[-1]
    last.write_bytes(last.read_bytes()[:-1])


def name_a_shard_twice(model: Path) -> None:
    """An index that leads every name to the first shard, which holds a part of them."""
    first = shard(model)[0]
    index = model / f"{WEIGHTS}.index.json"
    names = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, first.name)}))


HARMS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty weights": (write(WEIGHTS, b""), r"model.safetensors is not a complete safetensors file .*header too small"),
    "weights that are a pointer": (write(WEIGHTS, b"version https://git-lfs\n" * 9), "is not a complete safetensors file"),
    "cut weights": (cut, "is not a complete safetensors file .* file not fully covered.*; copy it again"),
    "lying weights": (lie, "is not a complete safetensors file .* file not fully covered"),
    "a lost shard": (lose_a_shard, "could not be loaded: .*model-00002-of-.*safetensors"),
    "a cut shard": (cut_a_shard, "model-000.*safetensors is not a complete safetensors file"),
    "an index that lies": (name_a_shard_twice, r"lack \d+ weights \(the first is "),
    "a million layers": (
        edit(num_hidden_layers=10**6),
        "its num_hidden_layers is 1,000,000, which is above the limit of 2,048",
    ),
    "more layers than memory": (
        edit(num_hidden_layers=10**12, layer_types=None),
        "its num_hidden_layers is 1,000,000,000,000",
    ),
    "a billion labels": (edit(num_labels=10**9), "its num_labels is 1,000,000,000"),
    "layers inside": (edit(text_config={"num_hidden_layers": 10**7}), "its num_hidden_layers is 10,000,000"),
    "a layer too many": (
        edit(num_hidden_layers=3, layer_types=["full_attention"] * 3),
        r"lack 12 weights \(the first is model\.layers\.2",
    ),
    "another vocabulary": (
        edit(vocab_size=2000),
        r"2 weights .* lm_head\.weight, has the shape \(1252, 32\), but should have \(2000, 32\)",
    ),
    "another type": (edit(model_type="gpt2", n_layer=2), r"lack .* weights \(the first is transformer"),
    "an unknown type": (edit(model_type="nothing"), "model type `nothing` but Transformers does not recognize"),
    "text as a number": (
        edit(hidden_size="32"),
        "Validation error for field 'hidden_size': TypeError: .* expected int, got str",
    ),
    "no heads": (edit(num_attention_heads=0), "could not be loaded: “ZeroDivisionError"),
    "an unknown function": (edit(hidden_act="evil"), "could not be loaded: “KeyError: 'evil'"),
    "a width beyond all": (edit(hidden_size=10**18), "Storage size calculation overflowed"),
    "a list for settings": (
        write("generation_config.json", b"[]"),
        "its generation_config.json: the file is not a JSON object",
    ),
    "a broken tokenizer": (write("tokenizer.json", b"{}"), "could not be loaded: "),
}


@pytest.mark.parametrize("harm", HARMS)
def test_harmed_files_are_refused_with_the_reason_before_weights_load(model: Path, tmp_path: Path, harm: str) -> None:
    change, message = HARMS[harm]
    change(model)
    asked = config("ipo", tmp_path / "out", model_name=str(model))
    observer = RecordingObserver()
    trainer = PreferenceTrainer(asked, observer=observer)
    said = []
    for start in (lambda: dry_run(asked), trainer.load):
        with pytest.raises(ModelRefused, match=message) as raised:
            start()
        said.append(str(raised.value))
    assert said[0] == said[1]
    assert len(said[0]) < 800
    assert trainer.model is None
    assert observer.phases == ["preparing"]
    as_reference = config("ipo", tmp_path / "out", ref_model_name=str(model))
    if harm not in ("another vocabulary", "a broken tokenizer"):
        with pytest.raises(ModelRefused, match=message):
            dry_run(as_reference)


@pytest.mark.parametrize("harm", [harm for harm in HARMS if harm != "a broken tokenizer"])
def test_a_load_that_nothing_was_checked_for_refuses_the_same_files(model: Path, harm: str) -> None:
    """As for a comparison, an export or a second model."""
    HARMS[harm][0](model)
    with pytest.raises(ModelRefused):
        load_model(str(model), torch.float32)


def without_prefix(model: Path) -> None:
    """Names as the model without its head has them."""
    AutoModel.from_pretrained(model).save_pretrained(model)
    edit(architectures=["Qwen2ForCausalLM"], tie_word_embeddings=True)(model)


@pytest.mark.parametrize("change", [shard, without_prefix, edit(tie_word_embeddings=True)])
def test_whole_files_of_other_layouts_load(model: Path, tmp_path: Path, change: Callable[[Path], Any]) -> None:
    change(model)
    asked = config("ipo", tmp_path / "out", model_name=str(model))
    assert dry_run(asked)["plan"]["optimizer_steps"] == 4
    PreferenceTrainer(asked, observer=RecordingObserver()).load()


def test_one_file_is_read_before_an_index_as_transformers_does(model: Path) -> None:
    shards = shard(model)
    assert model_files.weight_files(str(model)) == shards
    (model / WEIGHTS).write_bytes(b"x")
    assert model_files.weight_files(str(model)) == [model / WEIGHTS]


# -- blame


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("an illegal memory access"),
        OSError(errno.ENOSPC, "No space left on device"),
        DiskFull("full"),
        KeyboardInterrupt(),
        SystemExit(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_the_files_fault_keeps_its_own_error(model: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, loading(str(model)):
        raise error
    assert raised.value is error


def test_memory_that_torch_cannot_have_on_a_cpu_is_a_lack_of_memory(model: Path) -> None:
    with pytest.raises(MemoryError), loading(str(model)):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("Error(s) in loading state_dict for X:\n\tsize mismatch for a:\n\n\tcopying"),
            "X: size mismatch for a: copy",
        ),
        (KeyError("gelu_12"), "KeyError: 'gelu_12'"),
        (RuntimeError(), "“RuntimeError”$"),
        (ValueError("x" * 9000), "“x{500}…”$"),
    ],
)
def test_a_reason_is_more_than_its_first_line_and_bounded(model: Path, error: Exception, reason: str) -> None:
    with pytest.raises(ModelRefused, match=reason), loading(str(model)):
        raise error


def test_what_is_not_there_is_named_by_its_kind() -> None:
    with (
        pytest.raises(ModelNotFound, match="the adapter “/nowhere” was not found: “gone”"),
        loading("/nowhere", "adapter_name"),
    ):
        raise OSError("gone")
