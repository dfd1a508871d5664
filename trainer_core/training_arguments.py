"""Training arguments: from a config, or from a caller as plain transformers `TrainingArguments` or TRL's.

In a caller's arguments, what the caller set stays; everything else, and the method's own fields, come from the config.
"""

from collections.abc import Callable, Collection
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from transformers import TrainingArguments

from trainer_core.config import PreferenceConfig
from trainer_core.errors import Detail, SpecInvalid
from trainer_core.loading import reason_of
from trainer_core.methods.base import PreferenceMethod
from trainer_core.models import Precision
from trainer_core.schedule import interval
from trainer_core.wording import say

# Tokenised rows need these values, and the model is on the config's device.
_FIXED = {"remove_unused_columns", "label_names", "prediction_loss_only", "use_cpu"}
# Setting only one would contradict the config's value for the other.
_HALVES = ("bf16", "fp16")


def arguments_of(
    config: PreferenceConfig,
    method: PreferenceMethod[Any],
    steps: tuple[int, int],
    *,
    precision: Precision,
    has_validation: bool,
    checkpointing: bool,
    **changes: Any,
) -> TrainingArguments:
    """A method's TRL config.

    Args:
        steps: optimizer steps of the run, and of an epoch.
        checkpointing: whether activations are recomputed in the backward pass.
        changes: arguments that differ from the config.
    """
    on_gpu = torch.cuda.is_available()
    arguments = partial(
        method.arguments_class,
        output_dir=config.output_dir,
        run_name=f"{config.method_name}-{config.model_name.rstrip('/').rpartition('/')[2]}",
        learning_rate=config.effective_learning_rate,
        num_train_epochs=config.num_train_epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        # transformers reads a value below 1 as a share of the steps.
        warmup_steps=config.warmup_ratio if config.warmup_steps is None else config.warmup_steps,
        lr_scheduler_type=config.lr_scheduler_type,
        lr_scheduler_kwargs=None if config.min_lr_rate is None else {"min_lr_rate": config.min_lr_rate},
        optim=config.optim,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_epsilon=config.adam_epsilon,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if has_validation else "no",
        eval_steps=interval(config.eval_steps, *steps),
        eval_on_start=has_validation and config.eval_on_start is not False,
        save_strategy="steps",
        save_steps=interval(config.save_steps, *steps),
        save_total_limit=config.save_total_limit,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not on_gpu,
        gradient_checkpointing=checkpointing,
        dataloader_num_workers=config.dataloader_num_workers,
        dataloader_pin_memory=config.dataloader_pin_memory and on_gpu,
        remove_unused_columns=False,
        prediction_loss_only=True,
        report_to=list(config.report_to),
        disable_tqdm=True,
        **method.trl_arguments(),
    )(**changes)
    arguments.label_names = list(method.label_names)
    return arguments


def adopted(
    given: TrainingArguments, make: Callable[..., TrainingArguments], method_fields: Collection[str]
) -> TrainingArguments:
    """Arguments for a method's trainer.

    Args:
        given: of any class. A field with its class's default counts as not set.
        make: makes complete arguments from the fields that differ from the config.
        method_fields: names of the fields that only the config may set.

    Raises:
        SpecInvalid: a field that the caller set contradicts the config, or does not apply.
    """
    own = make()
    if isinstance(given, type(own)) and given.label_names == own.label_names:
        # Made by `get_training_arguments`, possibly changed by the caller.
        _refuse_others({name: getattr(given, name) for name in method_fields}, own)
        return given
    plain = type(given)(use_cpu=given.use_cpu)
    found = {one.name: getattr(given, one.name) for one in fields(given) if one.init and one.name not in _FIXED}
    asked = {name: value for name, value in found.items() if value != getattr(plain, name)}
    _refuse_others({name: value for name, value in asked.items() if name in method_fields}, own)
    known = {one.name for one in fields(own) if one.init}
    if strange := sorted(asked.keys() - known):
        details = [Detail(name, say("argument_unknown", name=name)) for name in strange]
        raise SpecInvalid(say("arguments_unknown", names=strange, type=type(own).__name__), details)
    if any(name in asked for name in _HALVES):
        asked |= {name: found[name] for name in _HALVES}
    if own.eval_strategy == "no" and asked.get("eval_strategy", "no") != "no":
        raise SpecInvalid.at("eval_strategy", say("arguments_evaluate"))
    try:
        return make(**asked)
    except (ValueError, TypeError) as error:
        raise SpecInvalid(say("arguments_unusable", problem=reason_of(error))) from error


def _refuse_others(asked: dict[str, Any], own: TrainingArguments) -> None:
    """Metrics, metadata and the order of the rows follow the config, so the loss must too."""
    for name, value in asked.items():
        expected = getattr(own, name)
        if value != expected:
            values = {"value": repr(value), "expected": repr(expected)}
            raise SpecInvalid.at(name, say("argument_contradicts", name=name, **values))
