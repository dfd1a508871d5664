"""Values that no model can have are refused with the file and the field, before anything loads."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import RecordingObserver
from tests.training import config, make_model
from trainer_core import PreferenceTrainer, config_values
from trainer_core.errors import ModelRefused


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("whole") / "model"))


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("config.json", "attention_dropout", 2),
        ("config.json", "attention_dropout", -0.1),
        ("config.json", "max_position_embeddings", -5),
        ("config.json", "max_position_embeddings", 0),
        ("config.json", "rope_theta", -1),
        ("config.json", "rope_theta", "x"),
        ("tokenizer_config.json", "model_max_length", "x"),
        ("tokenizer_config.json", "model_max_length", True),
        ("generation_config.json", "num_beams", 0),
        ("generation_config.json", "repetition_penalty", -1),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_file(
    whole: Path, tmp_path: Path, file: str, field: str, value: Any
) -> None:
    model = Path(shutil.copytree(whole, tmp_path / "model"))
    content = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps({**content, field: value}))
    trainer = PreferenceTrainer(config("ipo", tmp_path / "out", model_name=str(model)), observer=RecordingObserver())
    with pytest.raises(ModelRefused, match=f"its {file}: its {field} is {value!r}, but must be") as found:
        trainer.load()
    assert found.value.details[0].field == "model_name"
    assert trainer.tokenizer is None


def test_values_of_real_models_are_left_alone() -> None:
    text = {"attention_dropout": 0.0, "rope_theta": 1000000.0, "max_position_embeddings": 32768, "hidden_dropout": None}
    per_layer = {"rope_theta": {"full_attention": 1e6}, "dropout": [0.1, 0.2], "classifier_dropout": None, "embd_pdrop": 1}
    large = 1000000000000000019884624838656
    for file, content in {
        "config.json": {"text_config": text, **per_layer},
        "config.4.0.0.json": text,
        "adapter_config.json": {"lora_dropout": 0.05},
        "tokenizer_config.json": {"model_max_length": large, "attention_dropout": "no field of this file"},
        "generation_config.json": {"num_beams": 1, "repetition_penalty": 1.05, "top_k": -1, "temperature": 0},
        "preprocessor_config.json": {"dropout": 7},
    }.items():
        assert not list(config_values.faults(file, content)), file
    assert list(config_values.faults("config.json", {"text_config": {"dropout": float("nan")}}))
    assert list(config_values.faults("adapter_config.json", {"lora_dropout": 5}))
