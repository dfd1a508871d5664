"""Preference training for Arabic Qwen models: KTO, IPO, CPO and their relatives.

    from trainer_core import KTOConfig, create_kto_trainer

Each method has a config and a factory of these names. Names load when first used, so that `trainer_core.config` and
`trainer_core.rows` import without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer_core.config import *  # noqa: F403
    from trainer_core.preference_trainer import PreferenceTrainer as PreferenceTrainer
    from trainer_core.preference_trainer import create_preference_trainer as create_preference_trainer


def __getattr__(name: str) -> Any:
    if name.endswith("Config"):
        home = "trainer_core.config"
    elif name == "PreferenceTrainer" or (name.startswith("create_") and name.endswith("_trainer")):
        home = "trainer_core.preference_trainer"
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    from trainer_core.config import CONFIG_OF

    factories = [f"create_{name}_trainer" for name in (*CONFIG_OF, "preference")]
    return sorted([*(each.__name__ for each in CONFIG_OF.values()), *factories, "PreferenceTrainer"])
