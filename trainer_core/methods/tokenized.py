"""What the three TRL trainers share here: rows that are tokenised already, staged checkpoints, observed evaluation."""

from collections.abc import Callable
from typing import Any

from trainer_core.checkpoints import StagedCheckpoints
from trainer_core.observer import Observer


class TokenizedTrainer(StagedCheckpoints):
    """Mixin, to the left of a TRL trainer.

    TRL's own preparation would render and tokenise again, with other rules than the ones that generation and comparison
    use; rows arrive here with `prompt_ids` and answers' ids, and stay as they are.
    """

    observer: Observer
    preference_metrics: Callable[[], dict[str, float | None]] | None = None
    """Computes the method's metrics on the validation rows; its results join each evaluation's."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.observer.phase("evaluating")
        results: dict[str, Any] = super().evaluate(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if self.preference_metrics:
            extra = {f"eval_{name}": value for name, value in self.preference_metrics().items()}
            self.log({name: value for name, value in extra.items() if value is not None})  # pyright: ignore
            results.update(extra)
        self.observer.phase("training")
        return results

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: the metadata file says what a card would, and a card would name paths of this machine."""
