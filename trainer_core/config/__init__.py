"""The config of a run: `KTOConfig`, `IPOConfig`, `CPOConfig` and so on, one per method.

Each method's settings are a class (`KTOSettings`, ...) that the service's job spec shares, so each field is described once.
`SETTINGS` is the only list of methods. Everything else that depends on the method comes from the facts its class states.
Torch-free: importing this package loads nothing heavier than pydantic.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from trainer_core.config.base import Interval as Interval
from trainer_core.config.base import Optimizer as Optimizer
from trainer_core.config.base import Reward as Reward
from trainer_core.config.base import TemplateOption as TemplateOption
from trainer_core.config.base import TrainingSettings as TrainingSettings
from trainer_core.config.cpo import CPOConfig as CPOConfig
from trainer_core.config.cpo import CPOSettings as CPOSettings
from trainer_core.config.dpo import DPOConfig as DPOConfig
from trainer_core.config.dpo import DPOSettings as DPOSettings
from trainer_core.config.ipo import IPOConfig as IPOConfig
from trainer_core.config.ipo import IPOSettings as IPOSettings
from trainer_core.config.kto import KTOConfig as KTOConfig
from trainer_core.config.kto import KTOSettings as KTOSettings
from trainer_core.config.library import PreferenceConfig as PreferenceConfig
from trainer_core.config.simpo import SimPOConfig as SimPOConfig
from trainer_core.config.simpo import SimPOSettings as SimPOSettings
from trainer_core.library_paths import LibraryPaths as LibraryPaths
from trainer_core.row_rules import PAIRS, Kind

SETTINGS: tuple[type[TrainingSettings], ...] = (KTOSettings, IPOSettings, CPOSettings, DPOSettings, SimPOSettings)
METHODS = tuple(each.method_name for each in SETTINGS)
HEADLINE = tuple(each.method_name for each in SETTINGS if each.headline)
SETTINGS_OF = {each.method_name: each for each in SETTINGS}
CONFIG_OF: dict[str, type[PreferenceConfig]] = {
    each.method_name: getattr(import_module(each.__module__), f"{each.title}Config") for each in SETTINGS
}

if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[METHODS]
"""A method's name."""


def default_for(kind: Kind) -> str:
    """The method that trains on rows of a kind as they are."""
    rows = "pairs" if kind == PAIRS else "labels"
    return next(each.method_name for each in SETTINGS if each.rows == rows)


def joined(names: Sequence[str], last: str = "or") -> str:
    """Names joined for a sentence, e.g. `kto, ipo or cpo`."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
