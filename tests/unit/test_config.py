"""The library's configs and the job specs made of them."""

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.spec import JOB_SPEC
from trainer_core.config import CPOConfig, IPOConfig, KTOConfig

BASE = {"model_name": "Qwen/Qwen2.5-7B", "dataset_path": "data/rows.jsonl"}
JOB = {"model_name": "Qwen/Qwen2.5-7B", "dataset_path": "rows.jsonl"}


def test_the_documented_defaults() -> None:
    kto, ipo, cpo = KTOConfig(**BASE), IPOConfig(**BASE), CPOConfig(**BASE)
    assert (kto.beta, kto.desirable_weight, kto.undesirable_weight, kto.use_ref_model) == (0.1, 1.0, 1.0, True)
    assert (kto.max_prompt_length, kto.max_length) == (256, 512)
    assert (kto.learning_rate, ipo.learning_rate, cpo.learning_rate) == (1e-6, 5e-7, 5e-7)
    assert (kto.per_device_train_batch_size, kto.gradient_accumulation_steps, kto.eval_steps) == (4, 4, 500)
    assert (ipo.per_device_train_batch_size, ipo.gradient_accumulation_steps, ipo.eval_steps) == (2, 8, 1000)
    assert (cpo.cpo_alpha, cpo.loss_type, cpo.label_smoothing) == (1.0, "sigmoid", 0.0)
    assert [c.preference_method for c in (kto, ipo, cpo)] == ["kto", "ipo", "cpo"]
    assert kto.output_dir == "./checkpoints/kto"


def test_the_learning_rate_is_capped_unless_the_cap_is_lifted() -> None:
    assert IPOConfig(**BASE, learning_rate=1e-3).effective_learning_rate == 5e-7
    assert KTOConfig(**BASE, learning_rate=1e-3).effective_learning_rate == 1e-6
    assert CPOConfig(**BASE, learning_rate=1e-3, learning_rate_cap=None).effective_learning_rate == 1e-3


def test_a_config_can_be_changed_and_is_checked_again() -> None:
    config = KTOConfig(**BASE)
    config.per_device_train_batch_size = 8
    config.bf16 = True
    assert config.effective_precision == "bf16"
    with pytest.raises(ValidationError):
        config.beta = -1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"beta": 0}, "greater than 0"),
        ({"beta": float("nan")}, "finite number"),
        ({"max_length": 100}, "max_prompt_length"),
        ({"bf16": True, "fp16": True}, "cannot both"),
        ({"precision": "fp32", "bf16": True}, "disagrees"),
        ({"per_device_train_batch_size": 1}, "at least 2 for KTO"),
        ({"use_ref_model": False, "ref_model_name": "other/model"}, "use_ref_model"),
        ({"lora_target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"trust_remote_code": True}, "Extra inputs"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        KTOConfig(**{**BASE, **fields})


def test_a_spec_takes_its_methods_fields_only() -> None:
    assert JOB_SPEC.validate_python({**JOB, "method": "kto", "desirable_weight": 2}).method == "kto"
    with pytest.raises(ValidationError, match="desirable_weight"):
        JOB_SPEC.validate_python({**JOB, "method": "ipo", "desirable_weight": 2})
    with pytest.raises(ValidationError, match="output_dir"):
        JOB_SPEC.validate_python({**JOB, "method": "ipo", "output_dir": "/tmp/x"})


@pytest.mark.parametrize(
    "name", ["/etc", "../x", "a/../b", ".hidden/x", "a/b/c", "C:\\x", "a b", "http://x/y", "a/.b", "x\x00", "", "a//b"]
)
def test_a_model_name_is_never_a_path(name: str) -> None:
    with pytest.raises(ValidationError):
        JOB_SPEC.validate_python({**JOB, "method": "ipo", "model_name": name})


@pytest.mark.parametrize(
    "fields",
    [
        {"dataset_path": None},
        {"dataset_id": "0" * 32},
        {"validation_split": 0.1, "eval_dataset_path": "x"},
        {"eval_dataset_path": "x", "eval_dataset_id": "0" * 32},
    ],
)
def test_data_is_named_once(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JOB_SPEC.validate_python({**JOB, "method": "ipo", **fields})


def test_every_field_of_a_spec_is_described() -> None:
    schema = JOB_SPEC.json_schema()
    for name, definition in schema["$defs"].items():
        for field, about in definition["properties"].items():
            assert about.get("description"), f"{name}.{field} has no description"


def test_a_refused_assignment_changes_nothing() -> None:
    config = KTOConfig(model_name="m", dataset_path="d")
    with pytest.raises(ValidationError, match="max_prompt_length"):
        config.max_length = 100
    assert (config.max_length, config.max_prompt_length) == (512, 256)
    config.max_prompt_length = 50
    config.max_length = 100
    assert (config.max_length, config.max_prompt_length) == (100, 50)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, "auto"), ({"bf16": True}, "bf16"), ({"bf16": False}, "fp32"), ({"fp16": False}, "auto"), ({"fp16": True}, "fp16")],
)
def test_precision_follows_its_flags(fields: Any, expected: str) -> None:
    assert KTOConfig(model_name="m", dataset_path="d", **fields).effective_precision == expected
