"""Settings of DPO. Torch-free."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainer_core.config.library import PreferenceConfig
from trainer_core.config.pairs import PairSettings
from trainer_core.wording import say


class DPOSettings(PairSettings):
    """Direct Preference Optimization: pairs, and the log-ratio of each answer to the reference (arXiv:2305.18290)."""

    method_name: ClassVar[str] = "dpo"
    title: ClassVar[str] = "DPO"
    full_name: ClassVar[str] = "Direct Preference Optimization"
    paper: ClassVar[str] = "2305.18290"
    loss_fields: ClassVar[tuple[str, ...]] = ("beta", "loss_type", "label_smoothing")
    example: ClassVar[dict[str, Any]] = {"beta": 0.5}

    loss_type: Literal["sigmoid", "robust", "hinge"] = Field(
        "sigmoid",
        description="Form of the loss. With `label_smoothing`, `sigmoid` is conservative DPO and `robust` corrects for "
        "swapped labels.",
    )

    @model_validator(mode="after")
    def _dpo_consistent(self) -> Self:
        if self.loss_type == "hinge" and self.label_smoothing > 0:
            raise ValueError(say("smoothing_unused", known=["sigmoid", "robust"], value=self.loss_type))
        if self.loss_type == "robust" and self.label_smoothing == 0:
            raise ValueError(say("smoothing_missing"))
        return self


class DPOConfig(DPOSettings, PreferenceConfig):
    """Settings of a DPO run with the library. See `DPOSettings`."""
