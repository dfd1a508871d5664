"""The library's configs and the job specs made of them."""

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.spec import JOB_SPEC, changed_spec, read_spec
from trainer_core.config import CPOConfig, DPOConfig, IPOConfig, KTOConfig
from trainer_core.errors import SpecInvalid

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


def test_what_losses_do_not_take_is_refused() -> None:
    with pytest.raises(
        ValidationError, match="label_smoothing applies only to these values of loss_type: sigmoid, robust, not to hinge"
    ):
        DPOConfig(**BASE, loss_type="hinge", label_smoothing=0.1)
    with pytest.raises(ValidationError, match="loss_type=robust needs label_smoothing above 0"):
        DPOConfig(**BASE, loss_type="robust")
    assert KTOConfig(**BASE, loss_type="apo_zero_unpaired", per_device_train_batch_size=1).estimates_kl is False


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
        ({"precision": "fp32", "bf16": True}, "fp32 disagrees with bf16=true;"),
        ({"per_device_train_batch_size": 1}, "at least 2 for KTO"),
        ({"use_ref_model": False, "ref_model_name": "other/model"}, "use_ref_model"),
        ({"lora_target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"lora_target_modules": "lm_head"}, "lm_head"),
        ({"lora_target_modules": ".*proj"}, "is not the name of a module"),
        ({"report_to": "all"}, "name tensorboard, wandb or mlflow"),
        ({"report_to": "elsewhere"}, "'tensorboard', 'wandb' or 'mlflow'"),
        ({"trust_remote_code": True}, "Extra inputs"),
        ({"optim": "lion_32bit"}, "Input should be 'adamw_torch_fused'"),
        ({"optim": "adafactor", "adam_beta1": 0.5}, "adam_beta1 is an AdamW setting"),
        ({"adam_beta2": 1}, "less than 1"),
        ({"lora_dropout": 1}, "less than 1"),
        ({"lora_dropout": 0.1, "use_lora": False}, "lora_dropout needs use_lora=true"),
        ({"use_dora": True, "use_lora": False}, "use_dora needs use_lora=true"),
        ({"use_rslora": True, "use_lora": False}, "use_rslora needs use_lora=true"),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "cannot both be set"),
        ({"warmup_steps": 5, "lr_scheduler_type": "constant"}, "use constant_with_warmup"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "needs min_lr_rate"),
        ({"min_lr_rate": 0.1}, "needs lr_scheduler_type=cosine_with_min_lr, not linear"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        KTOConfig(**{**BASE, **fields})


@pytest.mark.parametrize(
    ("field", "one", "expected"),
    [
        ("report_to", "wandb", ["wandb"]),
        ("report_to", "none", []),
        ("report_to", ["none"], []),
        ("lora_target_modules", "q_proj", ["q_proj"]),
        ("lora_target_modules", "model.layers.0.self_attn.q_proj", ["model.layers.0.self_attn.q_proj"]),
        ("lora_target_modules", "all-linear", "all-linear"),
    ],
)
def test_one_name_is_a_list_of_one(field: str, one: Any, expected: Any) -> None:
    """In the library, when a setting is assigned, and in a job's spec, which is strict about types."""
    config = KTOConfig(**{**BASE, field: one})
    assert getattr(config, field) == expected
    setattr(config, field, one)
    assert getattr(config, field) == expected
    assert getattr(read_spec({**JOB, "method": "ipo", field: one}), field) == expected


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


@pytest.mark.parametrize("field", ["eval_steps", "save_steps"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 0.0, "steps", "0,5", None, [1], 2**31, float("nan")])
def test_an_interval_that_cannot_be_meant_is_refused_once(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as found:
        IPOConfig(**BASE, **{field: value})
    assert [error["loc"] for error in found.value.errors()] == [(field,)]
    with pytest.raises(SpecInvalid) as refused:
        read_spec({**JOB, "method": "ipo", field: value if value in (0, 1.5, "steps") else -1})
    reason = "must be a number of steps (1 or more), a share of all steps (above 0 and below 1), or “epoch”"
    assert [(detail.field, detail.reason) for detail in refused.value.details] == [(field, reason)]


@pytest.mark.parametrize("value", [1, 10.0, 0.25, "epoch"])
def test_an_interval_is_steps_a_share_or_an_epoch(value: Any) -> None:
    spec = read_spec({**JOB, "method": "kto", "eval_steps": value, "save_steps": value})
    assert (spec.eval_steps, spec.save_steps) == (value, value)
    assert type(spec.eval_steps) is (int if value == 10.0 else type(value))


def test_settings_can_be_read_again_as_they_were_stored() -> None:
    """With warm-up steps the stored ratio is 0, so the two do not exclude each other."""
    chosen = {
        "warmup_steps": 5,
        "lr_scheduler_type": "cosine_with_min_lr",
        "min_lr_rate": 0.1,
        "eval_steps": 0.2,
        "save_steps": "epoch",
        "optim": "adamw_8bit",
        "lora_dropout": 0.05,
        "use_dora": True,
    }
    spec = read_spec({**JOB, "method": "ipo", **chosen})
    assert (spec.warmup_steps, spec.warmup_ratio) == (5, 0)
    assert read_spec(spec.model_dump(mode="json")) == spec
    config = IPOConfig(**BASE, **chosen)
    assert IPOConfig.model_validate_json(config.model_dump_json()) == config


def test_a_change_of_a_spec_may_name_the_other_kind_of_warm_up() -> None:
    sent = {**JOB, "method": "ipo", "warmup_ratio": 0.2}
    changed = read_spec(changed_spec(sent, {"warmup_steps": 7}))
    assert (changed.warmup_steps, changed.warmup_ratio) == (7, 0)
    assert (
        read_spec(changed_spec(changed.model_dump(mode="json", exclude_unset=True), {"warmup_ratio": 0.3})).warmup_steps
        is None
    )


def test_another_method_leaves_out_the_fields_that_it_does_not_have() -> None:
    sent = {**JOB, "method": "kto", "beta": 0.3, "desirable_weight": 2.0, "use_ref_model": False}
    changed = changed_spec(sent, {"method": "simpo", "simpo_gamma": 0.5})
    assert changed == {**JOB, "method": "simpo", "beta": 0.3, "simpo_gamma": 0.5}
    assert read_spec(changed).method == "simpo"
    with pytest.raises(SpecInvalid, match="desirable_weight"):
        read_spec(changed_spec(sent, {"method": "ipo", "desirable_weight": 2.0}))


def test_rank_stabilised_scaling_divides_by_the_root_of_the_rank() -> None:
    assert KTOConfig(**BASE).lora_scaling == 32 / 16
    assert KTOConfig(**BASE, use_rslora=True).lora_scaling == 32 / 4
    assert KTOConfig(**BASE, use_lora=False).lora_scaling == 1
