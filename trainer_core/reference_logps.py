"""The reference's log-probabilities of all rows, computed once where a training would ask for them again and again.

The reference never changes, so from the second epoch on its passes tell nothing new. They are computed in the order and the
batches of the first epoch, so a resumed training computes the same bits, and kept in a file when there is a place for it:
trainings on the same rows and the same reference, with whatever learning rate or β, share them.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

Columns = dict[str, list[float]]
"""By TRL's name of the column, a value a row."""


@dataclass(frozen=True)
class Cache:
    """A directory of log-probabilities.

    Attributes:
        identity: everything beside the rows that decides the values: the reference's weights, precision, batch size.
    """

    folder: Path
    identity: dict[str, Any]

    def path(self, rows_fingerprint: str) -> Path:
        key = json.dumps({**self.identity, "rows": rows_fingerprint}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"

    def load(self, rows_fingerprint: str, names: Iterable[str], rows: int) -> Columns | None:
        """The columns, None when there are none that are whole."""
        try:
            found = json.loads(self.path(rows_fingerprint).read_text(encoding="utf-8"))
            columns = {name: [float(value) for value in found[name]] for name in names}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        is_whole = all(len(values) == rows and all(map(math.isfinite, values)) for values in columns.values())
        return columns if is_whole else None

    def store(self, rows_fingerprint: str, columns: Columns) -> None:
        """Keeps columns. A directory that cannot be written costs time later, and no training."""
        path = self.path(rows_fingerprint)
        staged = path.with_suffix(f".{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Python writes the shortest text that reads back as the same number.
            staged.write_text(json.dumps(columns), encoding="utf-8")
            staged.replace(path)
        except OSError:
            with suppress(OSError):
                staged.unlink()


def compute(
    trainer: Any, dataset: Dataset, names: tuple[str, ...], batch_size: int, on_batch: Callable[[], None]
) -> Columns:
    """Asks the reference of a TRL trainer for the log-probabilities of a dataset's rows.

    Args:
        names: of the columns of the two values that the trainer computes for a row.
    """
    columns: Columns = {name: [] for name in names}
    model = trainer.ref_model if trainer.ref_model is not None else trainer.model
    for start in range(0, len(dataset), batch_size):
        rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        batch = trainer.data_collator(rows)
        inputs = {
            name: value.to(trainer.accelerator.device) for name, value in batch.items() if isinstance(value, torch.Tensor)
        }
        for name, values in zip(names, trainer.compute_ref_log_probs(model, inputs), strict=True):
            columns[name] += values.float().tolist()
        on_batch()
    return columns


def with_columns(dataset: Dataset, columns: Columns) -> Dataset:
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)  # pyright: ignore[reportCallIssue]
    return dataset
