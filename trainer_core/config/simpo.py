"""Settings of SimPO. Torch-free."""

from typing import ClassVar

from pydantic import Field

from trainer_core.config.base import Positive, Reward
from trainer_core.config.library import PreferenceConfig
from trainer_core.config.pairs import PairSettings


class SimPOSettings(PairSettings):
    """Simple Preference Optimization: pairs, log-probabilities averaged over tokens, reference-free (arXiv:2405.14734)."""

    method_name: ClassVar[str] = "simpo"
    title: ClassVar[str] = "SimPO"
    full_name: ClassVar[str] = "Simple Preference Optimization"
    paper: ClassVar[str] = "2405.14734"
    loss_needs_reference: ClassVar[bool] = False
    reward: ClassVar[Reward] = "averaged"
    loss_fields: ClassVar[tuple[str, ...]] = ("beta", "simpo_gamma", "label_smoothing")

    beta: Positive = Field(2.0, le=100, description="Scale of the difference between average log-probabilities.")
    simpo_gamma: float = Field(
        1.0,
        ge=0,
        le=100,
        description="Margin that the scaled difference should exceed: the paper's γ. Its γ/β is `simpo_gamma / beta`.",
    )


class SimPOConfig(SimPOSettings, PreferenceConfig):
    """Settings of a SimPO run with the library. See `SimPOSettings`."""
