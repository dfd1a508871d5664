"""A preference method: its TRL trainer, its metrics, its metadata and its comparison reply."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from trainer_core.comparison import Comparison
from trainer_core.config import TrainingSettings
from trainer_core.effect import Margin
from trainer_core.row_rules import Row
from trainer_core.scoring import Scores
from trainer_core.wording import Message

SettingsT = TypeVar("SettingsT", bound=TrainingSettings)


class PreferenceMethod(ABC, Generic[SettingsT]):
    """One method, with the settings of a run.

    A method on pairs derives from `PairMethod` and adds its TRL trainer, its TRL config, and the loss of each pair.
    """

    trainer_class: ClassVar[type[Any]]
    """The TRL trainer, for rows that are already token ids."""
    arguments_class: ClassVar[type[Any]]
    """The TRL config that `trainer_class` takes."""
    columns: tuple[str, ...]
    """Columns of a row that are passed to the TRL trainer."""
    answers: tuple[str, ...]
    """The answers of a row that metrics are computed from."""
    reference_columns: tuple[str, ...] = ()
    """TRL's names for the reference's log-probabilities of a row; empty if the loss has no reference."""
    label_names: ClassVar[tuple[str, ...]]
    planned_by: ClassVar[tuple[str, ...]] = ()
    """Training arguments, besides the seed, that the order of the rows depends on: only the config may set them."""
    nullable: tuple[str, ...] = ()
    """Metrics that some batches cannot have; they are then reported as null."""

    def __init__(self, config: SettingsT) -> None:
        self.config = config

    # -- for TRL

    def fixed_arguments(self) -> dict[str, Any]:
        """Arguments of the loss that the method sets itself, not through a field."""
        return {}

    def method_arguments(self) -> dict[str, Any]:
        """The arguments specific to this method, with the limits on a row's length."""
        fields = self.config.stated((*self.config.loss_fields, "max_length", "max_prompt_length"), self.config.model_dump())
        return {**fields, **self.fixed_arguments()}

    def trl_arguments(self) -> dict[str, Any]:
        """Those arguments as the TRL config takes them."""
        fields = {name: getattr(self.config, name) for name in (*self.config.loss_fields, "max_length")}
        return {**fields, **self.fixed_arguments()}

    def configure(self, trainer: Any) -> None:
        """Sets our own attributes on the TRL trainer; called when it is built."""

    # -- rows

    @abstractmethod
    def plan(self, rows: Sequence[Row]) -> list[Row]:
        """Rows in training order."""

    @abstractmethod
    def arrange(self, rows: Sequence[Row]) -> list[Row]:
        """All rows, in evaluation order."""

    def row_warnings(self, rows: Sequence[Row]) -> Iterator[tuple[str, Message]]:
        """Code and text of each problem that the training rows may have with these settings."""
        return iter(())

    # -- what is measured

    @abstractmethod
    def metrics(self, scores: dict[str, Scores], rows: Sequence[Row]) -> dict[str, float | None]:
        """Preference metrics from the scores of each of `answers`; `docs/metrics.md` has their formulas."""

    @abstractmethod
    def margin(self, scores: dict[str, Scores], rows: Sequence[Row]) -> Margin | None:
        """The rows' mean reward margin, with its interval; None if they have none."""

    @abstractmethod
    def row_losses(self, scores: dict[str, Scores], rows: Sequence[Row]) -> Tensor:
        """(rows,) float64: the loss of each row, unreduced."""

    def rewards(self, scores: Scores) -> Tensor:
        """(answers,) the method's own implicit reward."""
        return scores.rewards(self.config.beta, self.config.reward)

    # -- what is stored and replied

    def metadata(self, reference_name: str) -> dict[str, Any]:
        """The method's part of the metadata file, without the time."""
        return {
            "training_method": self.config.method_name,
            **self.config.stated(self.config.metadata_fields(), self.config.model_dump()),
            "ref_model_name": reference_name,
        }

    @staticmethod
    @abstractmethod
    def reply(comparison: Comparison) -> dict[str, Any]:
        """A comparison in the form that the method replies with."""
