"""Settings of DPO. Torch-free."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainer_core.config.library import PreferenceConfig
from trainer_core.config.pairs import PairSettings


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
            raise ValueError("label_smoothing applies to loss_type='sigmoid' and 'robust' only")
        if self.loss_type == "robust" and self.label_smoothing == 0:
            raise ValueError("loss_type='robust' needs label_smoothing above 0: at 0 it is the sigmoid loss")
        return self


class DPOConfig(DPOSettings, PreferenceConfig):
    """Settings of a DPO run with the library. See `DPOSettings`."""
