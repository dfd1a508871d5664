"""One file per method, named after its `method_name`; the class in it is named after its `title`."""

from importlib import import_module

from trainer_core.config import SETTINGS, TrainingSettings
from trainer_core.methods.base import PreferenceMethod

METHOD_OF: dict[str, type[PreferenceMethod[TrainingSettings]]] = {
    each.method_name: getattr(import_module(f"trainer_core.methods.{each.method_name}"), each.title) for each in SETTINGS
}


def method_of(settings: TrainingSettings) -> PreferenceMethod[TrainingSettings]:
    """The method for these settings, ready to use."""
    return METHOD_OF[settings.method_name](settings)
