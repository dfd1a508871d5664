"""Training arguments that a caller brings: plain transformers `TrainingArguments`, or TRL's, made complete for a method.

What the caller set stays; everything else, and the method's own fields, come from the config.
"""

from collections.abc import Callable, Collection
from dataclasses import fields
from typing import Any

from transformers import TrainingArguments

from trainer_core.errors import Detail, SpecInvalid
from trainer_core.loading import reason_of

# The tokenised rows need these as they are, and the config's device holds the model.
_FIXED = {"remove_unused_columns", "label_names", "prediction_loss_only", "use_cpu"}
# One of them alone would contradict the config's value of the other.
_HALVES = ("bf16", "fp16")


def adopted(
    given: TrainingArguments, make: Callable[..., TrainingArguments], method_fields: Collection[str]
) -> TrainingArguments:
    """Arguments for a method's trainer.

    Args:
        given: of any class. A field that has its class's default counts as not set.
        make: from fields that differ from the config to complete arguments.
        method_fields: names of those that only the config may set.

    Raises:
        SpecInvalid: a field that the caller set disagrees with the config, or does not apply.
    """
    own = make()
    if isinstance(given, type(own)) and given.label_names == own.label_names:
        # Made by `get_training_arguments`, and changed where the caller wanted.
        _refuse_others({name: getattr(given, name) for name in method_fields}, own)
        return given
    plain = type(given)(use_cpu=given.use_cpu)
    found = {one.name: getattr(given, one.name) for one in fields(given) if one.init and one.name not in _FIXED}
    asked = {name: value for name, value in found.items() if value != getattr(plain, name)}
    _refuse_others({name: value for name, value in asked.items() if name in method_fields}, own)
    known = {one.name for one in fields(own) if one.init}
    if strange := sorted(asked.keys() - known):
        raise SpecInvalid(
            f"training_args sets {', '.join(strange)}, which {type(own).__name__} does not have",
            [Detail(name, "is not an argument of this method") for name in strange],
        )
    if any(name in asked for name in _HALVES):
        asked |= {name: found[name] for name in _HALVES}
    if own.eval_strategy == "no" and asked.get("eval_strategy", "no") != "no":
        raise SpecInvalid(
            "training_args sets eval_strategy, but there is no validation data",
            [Detail("eval_strategy", "needs validation data")],
        )
    try:
        return make(**asked)
    except (ValueError, TypeError) as error:
        raise SpecInvalid(f"training_args cannot be used: {reason_of(error)}") from error


def _refuse_others(asked: dict[str, Any], own: TrainingArguments) -> None:
    """Metrics, metadata and the order of the rows follow the config, so the loss must too."""
    for name, value in asked.items():
        expected = getattr(own, name)
        if value != expected:
            raise SpecInvalid(
                f"training_args has {name}={value!r}, but the config makes it {expected!r}; set it in the config",
                [Detail(name, "must be set in the config")],
            )
