"""Checkpoints without a model, for tests of what is done with them: each part is there, and its bytes mean nothing."""

from collections.abc import Callable
from pathlib import Path

from trainer_core.checkpoints import STATE_FILES

WEIGHTS = "model.safetensors"
PARTS = (WEIGHTS, *STATE_FILES)


def write_parts(staged: Path, content: Callable[[], bytes]) -> None:
    """Writes every file that a checkpoint must hold, each with new content, into a new directory."""
    staged.mkdir(parents=True)
    for name in PARTS:
        (staged / name).write_bytes(content())
