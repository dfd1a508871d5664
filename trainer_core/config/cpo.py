"""Settings of CPO. Torch-free."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainer_core.config.base import Positive
from trainer_core.config.library import PreferenceConfig
from trainer_core.config.pairs import PairSettings
from trainer_core.wording import say


class CPOSettings(PairSettings):
    """Contrastive Preference Optimization: pairs, reference-free, plus NLL of the chosen answer (arXiv:2401.08417)."""

    method_name: ClassVar[str] = "cpo"
    title: ClassVar[str] = "CPO"
    full_name: ClassVar[str] = "Contrastive Preference Optimization"
    paper: ClassVar[str] = "2401.08417"
    headline: ClassVar[bool] = True
    loss_needs_reference: ClassVar[bool] = False
    loss_fields: ClassVar[tuple[str, ...]] = ("beta", "cpo_alpha", "loss_type", "label_smoothing")

    beta: Positive = Field(0.1, le=100, description="Scale of the difference of log-probabilities.")
    cpo_alpha: float = Field(1.0, ge=0, le=1000, description="Weight of the chosen answer's NLL in the loss.")
    loss_type: Literal["sigmoid", "hinge"] = Field("sigmoid", description="Form of the preference term.")

    @model_validator(mode="after")
    def _cpo_consistent(self) -> Self:
        if self.loss_type == "hinge" and self.label_smoothing > 0:
            raise ValueError(say("smoothing_unused", known=["sigmoid"], value=self.loss_type))
        return self


class CPOConfig(CPOSettings, PreferenceConfig):
    """Settings of a CPO run with the library. See `CPOSettings`."""
