"""Settings that all methods on pairs share. Torch-free."""

from typing import Annotated, ClassVar

from pydantic import Field

from trainer_core.config.base import Interval, Positive, Rows, TrainingSettings
from trainer_core.config.units import Unit


class PairSettings(TrainingSettings):
    """Settings of a method on pairs."""

    rows: ClassVar[Rows] = "pairs"
    early_stopping_metrics: ClassVar[dict[str, bool]] = {
        "loss": False,
        "preference_loss": False,
        "preference_accuracy": True,
        "margin_accuracy": True,
        "margin": True,
        "confidence": True,
        "chosen_nll": False,
    }

    learning_rate: Positive = Field(5e-7, le=1, description="Peak learning rate, before the cap.")
    learning_rate_cap: Positive | None = Field(
        5e-7,
        le=1,
        description="Upper limit of the learning rate; `null` lifts it. A warning reports a rate that was lowered to it.",
    )
    per_device_train_batch_size: Annotated[int, Unit("pairs")] = Field(
        2, ge=1, le=1024, description="Pairs per forward pass."
    )
    gradient_accumulation_steps: Annotated[int, Unit("passes")] = Field(
        8, ge=1, le=4096, description="Forward passes per optimizer step."
    )
    eval_steps: Interval = Field(
        1000, description="Optimizer steps between evaluations; below 1, a share of all steps; `epoch`, once per epoch."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Assumed share of pairs whose labels are swapped.")
