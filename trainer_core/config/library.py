"""The base of every method's config for the library. Torch-free."""

from trainer_core.config.base import TrainingSettings
from trainer_core.library_paths import LibraryPaths


class PreferenceConfig(LibraryPaths, TrainingSettings):
    """A method's settings, with the paths that the library reads and writes."""
