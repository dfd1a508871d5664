"""Settings of IPO. Torch-free."""

from typing import Any, ClassVar

from trainer_core.config.base import Reward
from trainer_core.config.library import PreferenceConfig
from trainer_core.config.pairs import PairSettings


class IPOSettings(PairSettings):
    """Identity Preference Optimization: pairs, squared loss (arXiv:2310.12036)."""

    method_name: ClassVar[str] = "ipo"
    title: ClassVar[str] = "IPO"
    full_name: ClassVar[str] = "Identity Preference Optimization"
    paper: ClassVar[str] = "2310.12036"
    headline: ClassVar[bool] = True
    reward: ClassVar[Reward] = "averaged"
    loss_fields: ClassVar[tuple[str, ...]] = ("beta", "label_smoothing")
    example: ClassVar[dict[str, Any]] = {"beta": 0.5, "learning_rate": 1.5e-3}


class IPOConfig(IPOSettings, PreferenceConfig):
    """Settings of an IPO run with the library. See `IPOSettings`."""
