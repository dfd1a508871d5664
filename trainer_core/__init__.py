"""Preference training for Arabic Qwen models: KTO, IPO and CPO.

    from trainer_core import KTOConfig, create_kto_trainer

Names are loaded when first used, so that `trainer_core.config` and `trainer_core.rows` import without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer_core.config import CPOConfig, IPOConfig, KTOConfig
    from trainer_core.preference_trainer import (
        PreferenceTrainer,
        create_cpo_trainer,
        create_ipo_trainer,
        create_kto_trainer,
        create_preference_trainer,
    )

_HOMES = {
    "KTOConfig": "trainer_core.config",
    "IPOConfig": "trainer_core.config",
    "CPOConfig": "trainer_core.config",
    "PreferenceTrainer": "trainer_core.preference_trainer",
    "create_preference_trainer": "trainer_core.preference_trainer",
    "create_kto_trainer": "trainer_core.preference_trainer",
    "create_ipo_trainer": "trainer_core.preference_trainer",
    "create_cpo_trainer": "trainer_core.preference_trainer",
}

__all__ = [
    "CPOConfig",
    "IPOConfig",
    "KTOConfig",
    "PreferenceTrainer",
    "create_cpo_trainer",
    "create_ipo_trainer",
    "create_kto_trainer",
    "create_preference_trainer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
