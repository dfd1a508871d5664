"""What a run reports, and how it is asked to stop: the interface for whoever watches.

The library's default observer passes warnings to Python's `warnings` and is otherwise silent; the service's reports to a
job. Torch-free.
"""

import warnings
from pathlib import Path
from typing import Any, Literal

from trainer_core.effect import Verdict, describe

Phase = Literal["preparing", "loading", "reference", "training", "evaluating", "saving"]


class Observer:
    """Receives events. Override what you need; `should_stop` is called after every optimizer step."""

    def phase(self, phase: Phase) -> None:
        """A new phase began."""

    def progress(self, step: int, total_steps: int) -> None:
        """`step` optimizer steps of `total_steps` are done."""

    def alive(self) -> None:
        """A batch was computed; called often, so that silence means that training hangs."""

    def metrics(self, step: int, values: dict[str, float | None]) -> None:
        """Metric values at a step. NaN and infinity become None."""

    def data(self, report: dict[str, Any]) -> None:
        """Describes the data before training starts: rows, tokens, cuts and drops; see `PreferenceData.report`."""

    def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        """The model's answers at an evaluation (`prompt`, `response`, `tokens`)."""

    def warning(self, code: str, message: str) -> None:
        """Something is probably not what the user wanted."""
        warnings.warn(message, stacklevel=2)

    def effect(self, verdict: Verdict, evidence: dict[str, Any]) -> None:
        """Reports, after training, what the run did to the model. `evidence` is the same as in the metadata file."""
        if verdict != "changed":
            warnings.warn(describe(verdict, evidence), stacklevel=2)

    def review(self, found: dict[str, Any]) -> None:
        """Reports, after training, what the run learned: the same as `review` in the metadata file."""

    def checkpoint(self, step: int, path: Path) -> None:
        """A complete checkpoint was published."""

    def should_stop(self) -> bool:
        """Whether to save a checkpoint at this step boundary and stop."""
        return False
