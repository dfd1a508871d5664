"""The reference's log-probabilities of all rows, computed once for runs that would compute them repeatedly.

The reference never changes, so from the second epoch on its passes bring nothing new. They are computed in the order and the
batches of the first epoch, so that a resumed run gets the same bits. If a cache directory is set they are stored there, and
runs on the same rows and the same reference share them, whatever their learning rate or β.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from trainer_core.file_cache import FileCache

Columns = dict[str, list[float]]
"""Values by TRL's column name, one per row."""

OWN_COLUMNS = ("row", "KL_row", "loss_weight")
"""Columns of a batch that are ours: a model that receives one takes TRL's own path."""


@dataclass(frozen=True)
class Cache:
    """Stored log-probabilities.

    Attributes:
        identity: everything besides the rows that decides the values: the reference's weights, precision, batch size.
    """

    files: FileCache
    identity: dict[str, Any]

    def load(self, rows_fingerprint: str) -> Columns | None:
        """The columns of all rows; None if there are none."""
        found = self.files.read({**self.identity, "rows": rows_fingerprint})
        return None if found is None else json.loads(found)

    def store(self, rows_fingerprint: str, columns: Columns) -> None:
        # Python writes the shortest text that reads back as the same number.
        self.files.write({**self.identity, "rows": rows_fingerprint}, json.dumps(columns).encode())


def compute(
    trainer: Any, dataset: Dataset, names: tuple[str, ...], batch_size: int, on_batch: Callable[[], None]
) -> Columns:
    """Computes the log-probabilities of a dataset's rows with a TRL trainer's reference.

    Args:
        names: columns for the values that the trainer computes per row.
    """
    columns: Columns = {name: [] for name in names}
    model = trainer.ref_model if trainer.ref_model is not None else trainer.model
    for start in range(0, len(dataset), batch_size):
        rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        batch = trainer.data_collator(rows)
        inputs = {
            name: value.to(trainer.accelerator.device)
            for name, value in batch.items()
            if isinstance(value, torch.Tensor) and name not in OWN_COLUMNS
        }
        found = [values for values in trainer.compute_ref_log_probs(model, inputs) if values is not None]
        for name, values in zip(names, found, strict=True):
            columns[name] += values.float().tolist()
        on_batch()
    return columns


def with_columns(dataset: Dataset, columns: Columns) -> Dataset:
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)  # pyright: ignore[reportCallIssue]
    return dataset
