"""Settings of KTO. Torch-free."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainer_core.config.base import Positive, Rows, TrainingSettings
from trainer_core.config.library import PreferenceConfig
from trainer_core.wording import say


class KTOSettings(TrainingSettings):
    """Kahneman-Tversky Optimization: rows with one completion and a label (arXiv:2402.01306)."""

    method_name: ClassVar[str] = "kto"
    title: ClassVar[str] = "KTO"
    full_name: ClassVar[str] = "Kahneman-Tversky Optimization"
    paper: ClassVar[str] = "2402.01306"
    headline: ClassVar[bool] = True
    rows: ClassVar[Rows] = "labels"
    early_stopping_metrics: ClassVar[dict[str, bool]] = {
        "loss": False,
        "kto_loss": False,
        "overall_accuracy": True,
        "desirable_accuracy": True,
        "undesirable_accuracy": True,
        "preference_accuracy": True,
        "margin_accuracy": True,
        "margin": True,
    }
    metrics_of_pairs: ClassVar[tuple[str, ...]] = ("preference_accuracy", "margin_accuracy", "margin")
    loss_fields: ClassVar[tuple[str, ...]] = ("beta", "loss_type", "desirable_weight", "undesirable_weight")
    newer_fields: ClassVar[tuple[str, ...]] = ("loss_type",)
    example: ClassVar[dict[str, Any]] = {"beta": 0.5, "desirable_weight": 2.0, "max_steps": 100, "eval_steps": 50}

    loss_type: Literal["kto", "apo_zero_unpaired"] = Field(
        "kto",
        description="`kto` compares rewards with an estimate of the KL divergence; `apo_zero_unpaired` (APO-zero) compares "
        "them with 0, and suits desirable answers that are better than the model's own.",
    )
    desirable_weight: Positive = Field(1.0, le=1000, description="Weight of desirable rows in the loss (λ_D).")
    undesirable_weight: Positive = Field(1.0, le=1000, description="Weight of undesirable rows in the loss (λ_U).")
    use_ref_model: bool = Field(
        True, description="Load a copy of the reference if one is needed; `false` computes the same loss without a copy."
    )
    use_confidence: bool = Field(
        False, description="Multiply each row's loss by its `confidence` (above 0, at most 1; 1 if absent)."
    )

    @classmethod
    def metadata_fields(cls) -> tuple[str, ...]:
        return (*super().metadata_fields(), "use_ref_model")

    @property
    def trains_without_reference_copy(self) -> bool:
        return not self.use_ref_model

    @property
    def estimates_kl(self) -> bool:
        """Whether the loss compares rewards with a KL estimate, from each prompt with another row's answer."""
        return self.loss_type == "kto"

    @property
    def weighs_confidence(self) -> bool:
        return self.use_confidence

    @model_validator(mode="after")
    def _kto_consistent(self) -> Self:
        if self.estimates_kl and self.per_device_train_batch_size < 2:
            raise ValueError(say("kto_batch_too_small"))
        if not self.use_ref_model and self.ref_model_name not in (None, self.model_name):
            raise ValueError(say("kto_other_reference"))
        if not self.use_ref_model and self.reference_in_4bit != (self.load_in_4bit and self.use_lora):
            raise ValueError(say("kto_reference_4bit"))
        return self


class KTOConfig(KTOSettings, PreferenceConfig):
    """Settings of a KTO run with the library. See `KTOSettings`."""
