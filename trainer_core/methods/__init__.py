"""One file a method: from settings to a TRL trainer, the method's metrics, its metadata and its comparison reply."""

from collections.abc import Sequence
from typing import Any, Protocol

from trainer_core.comparison import Comparison
from trainer_core.config import Method
from trainer_core.effect import Margin
from trainer_core.methods import cpo, ipo, kto
from trainer_core.row_rules import Row
from trainer_core.scoring import Scores


class MethodModule(Protocol):
    """What each module of this package offers."""

    def trainer_class(self) -> type[Any]:
        """The TRL trainer, taking rows that are token ids already."""
        ...

    def arguments_class(self) -> type[Any]:
        """The TRL config that `trainer_class` takes."""
        ...

    def method_arguments(self, config: Any) -> dict[str, Any]:
        """The seed's method-specific arguments."""
        ...

    def trl_arguments(self, config: Any) -> dict[str, Any]:
        """What the TRL config takes of them."""
        ...

    COLUMNS: tuple[str, ...]
    """What of a row the TRL trainer gets."""
    ANSWERS: tuple[str, ...]
    """The answers of a row that metrics are computed from."""
    REFERENCE_COLUMNS: tuple[str, ...]
    """TRL's names of the reference's two log-probabilities of a row; none where the loss has no reference."""
    PLANNED_BY: tuple[str, ...]
    """Training arguments that the order of the rows depends on, beyond the seed: only the config may set them."""
    NULLABLE: tuple[str, ...]
    """Metrics that some batches cannot have: they are told as null then."""

    def plan(self, rows: Sequence[Row], config: Any) -> list[Row]:
        """Rows in training order."""
        ...

    def arrange(self, rows: Sequence[Row], config: Any) -> list[Row]:
        """All rows, in the order of an evaluation."""
        ...

    def metrics(self, config: Any, scores: dict[str, Scores], rows: Sequence[Row]) -> dict[str, float | None]:
        """Preference metrics from the scores of each of `ANSWERS`."""
        ...

    def margin(self, config: Any, scores: dict[str, Scores], rows: Sequence[Row]) -> Margin | None:
        """The mean reward margin of rows, with its interval; None if the rows have none."""
        ...

    def metadata(self, config: Any, reference_name: str) -> dict[str, Any]:
        """The method's part of the metadata file, without the time."""
        ...

    def reply(self, comparison: Comparison) -> dict[str, Any]:
        """The method's form of a comparison."""
        ...


MODULES: dict[Method, Any] = {"kto": kto, "ipo": ipo, "cpo": cpo}
