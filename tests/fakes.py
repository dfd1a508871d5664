"""Fakes of the product's own ports."""

from pathlib import Path
from typing import Any

from jobs.states import TaskKind
from trainer_core.effect import Verdict
from trainer_core.observer import Observer, Phase


class FakeQueue:
    """Keeps what was published. `is_broken` makes it behave like an unreachable broker."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.tasks: list[tuple[str, TaskKind]] = []
        self.nudges: list[str] = []
        self.is_broken = False

    def publish_training(self, job_id: str, gpu_class: str | None = None) -> bool:
        if not self.is_broken:
            self.runs.append(job_id)
        return not self.is_broken

    def publish_task(self, task_id: str, kind: TaskKind) -> bool:
        if not self.is_broken:
            self.tasks.append((task_id, kind))
        return not self.is_broken

    def waiting(self, gpu_class: str | None) -> int:
        return 0

    def nudge(self, subject_id: str) -> None:
        self.nudges.append(subject_id)

    def is_up(self) -> bool:
        return not self.is_broken


class RecordingObserver(Observer):
    """Keeps everything it is told, and asks to stop after a step when told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.phases: list[str] = []
        self.steps: list[int] = []
        self.points: list[tuple[int, dict[str, float | None]]] = []
        self.warnings: dict[str, str] = {}
        self.reports: list[dict[str, Any]] = []
        self.answers: list[tuple[int, list[dict[str, Any]]]] = []
        self.checkpoints: list[int] = []
        self.effects: list[tuple[str, dict[str, Any]]] = []
        self.reviews: list[dict[str, Any]] = []
        self._stop_after = stop_after

    def phase(self, phase: Phase) -> None:
        self.phases.append(phase)

    def progress(self, step: int, total_steps: int) -> None:
        self.steps.append(step)

    def metrics(self, step: int, values: dict[str, float | None]) -> None:
        self.points.append((step, values))

    def data(self, report: dict[str, Any]) -> None:
        self.reports.append(report)

    def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        self.answers.append((step, samples))

    def warning(self, code: str, message: str) -> None:
        self.warnings[code] = message

    def effect(self, verdict: Verdict, evidence: dict[str, Any]) -> None:
        self.effects.append((verdict, evidence))

    def review(self, found: dict[str, Any]) -> None:
        self.reviews.append(found)

    def checkpoint(self, step: int, path: Path) -> None:
        self.checkpoints.append(step)

    def should_stop(self) -> bool:
        return self._stop_after is not None and self.steps[-1] >= self._stop_after
