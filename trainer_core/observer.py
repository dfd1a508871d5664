"""What training tells while it runs, and how it is asked to stop: the port to whoever watches.

The library's default passes warnings on to Python's and is otherwise silent; the service's reports to a job. Torch-free.
"""

import warnings
from pathlib import Path
from typing import Any, Literal

from trainer_core.effect import Verdict, describe

Phase = Literal["preparing", "loading", "reference", "training", "evaluating", "saving"]


class Observer:
    """Receives what happens. Override what you need; `should_stop` is asked after every optimizer step."""

    def phase(self, phase: Phase) -> None:
        """A new phase began."""

    def progress(self, step: int, total_steps: int) -> None:
        """`step` optimizer steps of `total_steps` are done."""

    def alive(self) -> None:
        """A batch was computed; told often, so that silence means that training hangs."""

    def metrics(self, step: int, values: dict[str, float | None]) -> None:
        """Metric values at a step. A value that is NaN or infinite arrives as None."""

    def data(self, report: dict[str, Any]) -> None:
        """What the data is, before training starts: rows, tokens, cuts and drops; see `PreferenceData.report`."""

    def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        """Answers (`prompt`, `response`, `tokens`) that the model gave at an evaluation."""

    def warning(self, code: str, message: str) -> None:
        """Something is probably not what the user wanted."""
        warnings.warn(message, stacklevel=2)

    def effect(self, verdict: Verdict, evidence: dict[str, Any]) -> None:
        """Reports, after training, what the run did to the model. `evidence` is the same as in the metadata file."""
        if verdict != "changed":
            warnings.warn(describe(verdict, evidence), stacklevel=2)

    def checkpoint(self, step: int, path: Path) -> None:
        """A complete checkpoint was published."""

    def should_stop(self) -> bool:
        """True: save a checkpoint at this step boundary and leave."""
        return False
