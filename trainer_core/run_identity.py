"""What must be the same for a run to resume from a checkpoint. Torch-free."""

import re
from collections.abc import Mapping
from typing import Any

from trainer_core.config import PreferenceConfig, TrainingSettings
from trainer_core.wording import is_known, say

_OPTIONS = {
    "warm-up steps": "warmup_steps",
    "learning rate floor": "min_lr_rate",
    "optimizer": "optim",
    "Adam beta1": "adam_beta1",
    "Adam beta2": "adam_beta2",
    "Adam epsilon": "adam_epsilon",
    "LoRA dropout": "lora_dropout",
    "use of rank-stabilised LoRA": "use_rslora",
    "use of DoRA": "use_dora",
}


def identity(config: PreferenceConfig, arguments: Any, data_plan: str, warm_up: str) -> dict[str, Any]:
    """The identity of a run, by the names that an error uses.

    Args:
        arguments: transformers' `TrainingArguments` of the run; a caller may have created them without the config.
        data_plan: fingerprint of the rows in training order.
        warm_up: how the learning rate begins.
    """
    return {
        "method": config.preference_method,
        "use of LoRA": config.use_lora,
        "batch size": arguments.per_device_train_batch_size,
        "gradient accumulation": arguments.gradient_accumulation_steps,
        "learning rate": arguments.learning_rate,
        "schedule": getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type),
        **_loss(config),
        "data plan": data_plan,
        "warm-up": warm_up,
        **{name: getattr(config, field) for name, field in _OPTIONS.items()},
    }


def complete(recorded: Mapping[str, Any], config: PreferenceConfig) -> dict[str, Any]:
    """A checkpoint's identity, with what it does not record.

    Versions before an option or a newer field had no other choice. Of the other loss fields they recorded only `beta`, so
    the config's values are used.
    """
    defaults = {name: TrainingSettings.model_fields[field].default for name, field in _OPTIONS.items()}
    defaults |= {name: type(config).model_fields[name].default for name in config.newer_fields}
    return {**_loss(config), **defaults, **recorded}


def words(name: str) -> str:
    """The readable name of an identity's field; fields of the loss have their names in the config."""
    code = f"identity.{re.sub('[ -]', '_', name).lower()}"
    return say(code) if is_known(code) else name


def _loss(config: PreferenceConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.loss_fields}
