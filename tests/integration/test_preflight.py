"""What can be known is said before a model loads, and names the thing and the fix."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DATA
from tests.fakes import RecordingObserver
from tests.training import config, make_model, some_rows, write_rows
from trainer_core import KTOConfig, PreferenceTrainer
from trainer_core.config import METHODS, joined
from trainer_core.errors import (
    DataInvalid,
    DataOverlong,
    ModelNotFound,
    ModelRefused,
    NotInstalled,
    SpecInvalid,
    TafdilError,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that cannot be used, each in its own way."""
    folder = tmp_path_factory.mktemp("preflight")
    make_model(folder / "model")
    for name in ("no_weights", "pickled", "half", "no_end", "other_words"):
        shutil.copytree(folder / "model", folder / name)
    (folder / "no_weights" / "model.safetensors").unlink()
    (folder / "pickled" / "model.safetensors").rename(folder / "pickled" / "pytorch_model.bin")
    edit(folder / "no_end" / "tokenizer_config.json", eos_token=None)
    edit(folder / "other_words" / "config.json", vocab_size=2000)
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["lm_head"]}')
    more = folder / "more"
    more.mkdir()
    (more / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "target_modules": ["k_proj"], "modules_to_save": ["lm_head"]}'
    )
    by_token = folder / "by_token"
    by_token.mkdir()
    (by_token / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "target_modules": ["k_proj"], "alora_invocation_tokens": [1, 2]}'
    )
    ia3 = folder / "ia3"
    ia3.mkdir()
    (ia3 / "adapter_config.json").write_text('{"peft_type": "IA3", "target_modules": ["k_proj"]}')
    (folder / "file").write_text("")
    write_rows(folder / "labelled.jsonl", some_rows("kto", 8))
    return folder


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


CASES: list[tuple[dict[str, Any], type[TafdilError], str]] = [
    ({"model_name": "nowhere"}, ModelNotFound, "the model “.*nowhere” was not found"),
    ({"model_name": "no_weights"}, ModelRefused, "no safetensors weights"),
    ({"model_name": "pickled"}, ModelRefused, "no safetensors weights"),
    ({"model_name": "adapter"}, ModelRefused, "is a LoRA adapter, not a model; set adapter_name"),
    ({"model_name": "no_end"}, ModelRefused, "no end token"),
    ({"ref_model_name": "nowhere"}, ModelNotFound, "the model “.*nowhere” was not found"),
    ({"ref_model_name": "other_words"}, ModelRefused, "has 2,000 tokens in its vocabulary, but the model .* has 1,252"),
    ({"adapter_name": "nowhere"}, ModelNotFound, "nowhere"),
    ({"adapter_name": "adapter"}, ModelRefused, "adapts lm_head"),
    ({"adapter_name": "more"}, ModelRefused, "has modules_to_save"),
    ({"adapter_name": "by_token"}, ModelRefused, "sets alora_invocation_tokens"),
    ({"output_dir": "model"}, SpecInvalid, "output_dir is the directory of the model"),
    ({"adapter_name": "ia3"}, ModelRefused, "not LoRA"),
    (
        {"lora_target_modules": ["q_proj", "qq_proj"]},
        SpecInvalid,
        "qq_proj” is not in the model.* are down_proj, embed_tokens, gate_proj",
    ),
    ({"lora_target_modules": ["q_proj", "mlp"]}, SpecInvalid, "mlp” is neither a linear"),
    ({"max_length": 4096}, SpecInvalid, "max_length is 4,096, but .* accepts at most 512 tokens"),
    ({"load_in_4bit": True}, SpecInvalid, "is a multiple of 64"),
    ({"output_dir": "file/below"}, SpecInvalid, "the output directory .* cannot be written"),
    ({"precision": "fp16"}, SpecInvalid, "fp16 needs a GPU"),
    ({"dataset_path": "nothing.jsonl"}, DataInvalid, r"nothing\.jsonl"),
    ({"dataset_path": "labelled.jsonl"}, DataInvalid, "IPO needs preference pairs"),
    ({"eval_dataset_path": "labelled.jsonl"}, DataInvalid, "IPO needs preference pairs"),
    ({"on_overlong": "reject", "max_prompt_length": 4, "max_length": 8}, DataOverlong, "the first is row 1"),
    ({"on_overlong": "drop", "max_prompt_length": 4, "max_length": 8}, DataOverlong, "none is left"),
]


@pytest.mark.parametrize(("fields", "error", "message"), CASES, ids=lambda value: str(value)[:60])
def test_said_before_a_model_loads(
    fields: dict[str, Any], error: type[TafdilError], message: str, place: Path, tmp_path: Path
) -> None:
    paths = ("model_name", "ref_model_name", "adapter_name", "dataset_path", "eval_dataset_path", "output_dir")
    placed = {name: str(place / value) if name in paths else value for name, value in fields.items()}
    settings = config("ipo", tmp_path, **{"model_name": str(place / "model"), **placed})
    observer = RecordingObserver()
    trainer = PreferenceTrainer(settings, observer=observer)
    with pytest.raises(error, match=message):
        trainer.load()
    assert trainer.model is None
    assert observer.phases == ["preparing"]


def test_weights_that_are_missing_in_the_files_are_not_drawn_at_random(place: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(place / "half" / "model.safetensors")
    save_file(
        {n: t for n, t in weights.items() if "layers.1" not in n}, place / "half" / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelRefused, match=r"lack 12 weights \(the first is model\.layers\.1"):
        PreferenceTrainer(config("ipo", tmp_path, model_name=str(place / "half"))).load()


def test_4_bit_without_its_package(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    trainer = PreferenceTrainer(config("ipo", tmp_path, load_in_4bit=True))
    with pytest.raises(
        NotInstalled, match=r"package bitsandbytes, .* pip install 'tafdil\[quant\]', or set load_in_4bit"
    ) as found:
        trainer.load()
    assert not found.value.user_fault


@pytest.mark.parametrize("local_rank", [None, "0"])
def test_several_gpus_for_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_rank: str | None) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    if local_rank:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(SpecInvalid, match="one GPU, but 2 are visible; set CUDA_VISIBLE_DEVICES"):
        PreferenceTrainer(config("cpo", tmp_path / "out")).load()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_several_processes_are_refused_by_the_variable_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    trainer = PreferenceTrainer(config("ipo", tmp_path / "out"))
    for value in ("2", "many"):
        monkeypatch.setenv(name, value)
        with pytest.raises(
            SpecInvalid, match=f"one process, but {name} is {value}; start it with python, .* or unset {name}"
        ):
            trainer.load()
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv(name, "1")
    trainer.load()


def test_a_method_that_is_none(tmp_path: Path) -> None:
    class Other(KTOConfig):
        method_name = "none"

    with pytest.raises(ValueError, match=f"unknown preference method 'none'; use {joined(METHODS)}"):
        PreferenceTrainer(Other(model_name="m", dataset_path="d"))


@pytest.mark.parametrize("value", [0, -1, 1.5, "high", True])
def test_a_confidence_that_is_none(value: Any, tmp_path: Path) -> None:
    rows = [*some_rows("kto", 8), {**some_rows("kto", 1)[0], "confidence": value}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    trainer = PreferenceTrainer(config("kto", tmp_path, dataset_path=path, use_confidence=True))
    with pytest.raises(DataInvalid, match=f"line 9: confidence is {value}, but must be a number above 0 and at most 1"):
        trainer.load()
    unweighted = PreferenceTrainer(config("kto", tmp_path, dataset_path=path))
    unweighted.load()
    assert len(unweighted.data_loader.train) == 8, "one row of the last batch is left out"


def test_the_data_report_comes_before_the_model(tmp_path: Path) -> None:
    observer = RecordingObserver()
    fields: dict[str, Any] = {"max_prompt_length": 20, "max_length": 32, "validation_split": 0.1, "desirable_weight": 3.0}
    fields["dataset_path"] = str(DATA / "kto_train.jsonl")
    trainer = PreferenceTrainer(config("kto", tmp_path, **fields), observer=observer)
    trainer.load()
    (report,) = observer.reports
    train = report["train"]
    assert train["rows"] == 640 == report["rows_trained_on"] + report["rows_validated_on"] + report["rows_left_over"]
    assert train["prompt_tokens"]["max"] > 20
    assert train["prompts_cut"] > 0
    assert train["first_rows_cut"][0] >= 1
    assert report["desirable_rows"] + report["undesirable_rows"] == report["rows_trained_on"]
    low = report["suggested_weights"]["desirable_weight_min"]
    assert low == pytest.approx(report["undesirable_rows"] / report["desirable_rows"])
    assert f"{low:.3g}"[:4].rstrip("0") in observer.warnings["labels_unbalanced"]
    assert "answers cut: " in observer.warnings["rows_overlong"]


def test_a_prompt_with_most_rows_is_not_set_apart(tmp_path: Path) -> None:
    rows = some_rows("ipo", 60)
    rows = [{**row, "prompt": "اكتب جملة."} if i < 54 else row for i, row in enumerate(rows)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    for seed in range(8):
        trainer = PreferenceTrainer(config("ipo", tmp_path, dataset_path=path, validation_split=0.1, seed=seed))
        trainer.load()
        assert len(trainer.data_loader.train) >= 54
        assert trainer.data_loader.validation


@pytest.mark.parametrize("validation_split", [None, 0.25])
def test_rows_with_one_prompt_are_split_by_row(validation_split: float | None, tmp_path: Path) -> None:
    rows = [{**row, "prompt": "اكتب جملة."} for row in some_rows("ipo", 48)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    observer = RecordingObserver()
    trainer = PreferenceTrainer(
        config("ipo", tmp_path, dataset_path=path, validation_split=validation_split), observer=observer
    )
    trainer.load()
    loader = trainer.data_loader
    assert "1 prompt is in both training and validation rows" in observer.warnings["validation_overlaps"]
    apart = loader.validation if validation_split else loader.held_back
    assert len(apart) == (12 if validation_split else 2)
    assert sorted(row["row"] for row in [*apart, *loader.train]) == list(range(1, 49))


def test_rows_of_any_shape_train(tmp_path: Path) -> None:
    """Other fields may differ from row to row: they are kept out of what the trainer is given."""
    rows = [
        {**row, "note": note}
        for row, note in zip(some_rows("ipo", 8), [1, "x", None, [1], {"a": 1}, 2.5, True, ""], strict=True)
    ]
    trainer = PreferenceTrainer(
        config("ipo", tmp_path, dataset_path=write_rows(tmp_path / "r.jsonl", rows), max_steps=1),
        observer=RecordingObserver(),
    )
    trainer.train()
