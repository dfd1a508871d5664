"""One file a method. A file is named as the method's `method_name`, and its class as the method's `title`."""

from importlib import import_module

from trainer_core.config import SETTINGS, TrainingSettings
from trainer_core.methods.base import PreferenceMethod

METHOD_OF: dict[str, type[PreferenceMethod[TrainingSettings]]] = {
    each.method_name: getattr(import_module(f"trainer_core.methods.{each.method_name}"), each.title) for each in SETTINGS
}


def method_of(settings: TrainingSettings) -> PreferenceMethod[TrainingSettings]:
    """The method of settings, ready to use."""
    return METHOD_OF[settings.method_name](settings)
