"""Reads the rows of a config's files and mixes datasets.

- `rows`: the number of training rows to take. More than the dataset has is an error.
- `weight`: with weights w and n training rows each, the dataset with the least n / w gives all n of its rows, and every
  other one gives n · w' / w rows, rounded to the nearest row (half a row up). So no row is repeated, and each share is exact
  to half a row. Example: 1000 formal rows with weight 3 and 200 dialect rows with weight 1 give 600 and 200.
- neither: all rows.

A row is a row of the file: a pair counts as one, even if KTO splits it into two. The choice depends on the seed, the
dataset's position and its number of rows. Chosen rows keep the order of the file. Rows that are dropped later, such as
those that are too long, are not replaced. Validation parts are joined in full. Torch-free.
"""

import dataclasses
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

from trainer_core.config import Method, PreferenceConfig
from trainer_core.errors import DataInvalid
from trainer_core.mix_options import Take
from trainer_core.row_names import AS_NUMBERED, RowNames, naming, numbered, place_of
from trainer_core.row_rules import Row
from trainer_core.rows import Part, read_rows
from trainer_core.wording import say


@dataclass(frozen=True)
class Taken:
    """How many training rows a dataset has, and how many were taken."""

    name: str
    rows_in_file: int
    rows_taken: int


@dataclass(frozen=True)
class ReadRows:
    """The rows of a config's files, in the shape that its method needs, each with its number as `row`.

    `taken` is empty if there is only one file.
    """

    train: list[Row]
    validation: list[Row]
    names: RowNames = AS_NUMBERED
    taken: tuple[Taken, ...] = ()

    def report(self, trained: Sequence[Row]) -> list[dict[str, Any]]:
        """Each dataset with its rows and how many of them train. KTO counts a pair as two there."""
        counts = [0] * (len(self.taken) + 1)
        for row in trained:
            counts[place_of(row["row"])] += 1
        return [
            {**dataclasses.asdict(taken), "rows_trained_on": count}
            for taken, count in zip(self.taken, counts[1:], strict=True)
        ]


def read(config: PreferenceConfig) -> ReadRows:
    """Reads the files of a config.

    Raises:
        DataInvalid: a file cannot be read, has rows that the method cannot use, or has fewer rows than the mix needs. The
            message names the dataset if there are several.
    """
    method, apart = config.preference_method, config.eval_dataset_path
    if config.datasets is None:
        assert config.dataset_path is not None, "a config has one of the two"
        parts = read_rows(Path(config.dataset_path), method)
        return ReadRows(parts["train"], read_rows(Path(apart), method)["train"] if apart else parts["validation"])
    names = RowNames([*(source.label for source in config.datasets), *([Path(apart).name] if apart else [])])
    parts_of_each = [_numbered(each.path, place, names, method) for place, each in enumerate(config.datasets, start=1)]
    wholes = [_whole_rows(parts["train"]) for parts in parts_of_each]
    counts = rows_of_each(config.datasets, [len(whole) for whole in wholes], names.labels)
    train = [
        row
        for place, (whole, count) in enumerate(zip(wholes, counts, strict=True), start=1)
        for index in chosen(len(whole), count, config.seed, place)
        for row in whole[index]
    ]
    if apart:
        validation = _numbered(apart, len(names.labels), names, method)["train"]
    else:
        validation = [row for parts in parts_of_each for row in parts["validation"]]
    taken = (Taken(*found) for found in zip(names.labels, map(len, wholes), counts, strict=False))
    return ReadRows(train, validation, names, tuple(taken))


def rows_of_each(datasets: Sequence[Take], sizes: Sequence[int], labels: Sequence[str]) -> list[int]:
    """How many rows to take from each dataset.

    Args:
        sizes: the number of training rows in each.
        labels: their names in messages.

    Raises:
        DataInvalid: a dataset has too few rows, or its weight is too small for one row.
    """
    found: list[int] = []
    scale = _scale(datasets, sizes)
    for place, (dataset, size) in enumerate(zip(datasets, sizes, strict=True)):
        count = size if dataset.rows is None else dataset.rows
        if dataset.weight is not None:
            # Half a row up, in exact numbers.
            count = math.floor(scale * _exact(dataset.weight) + Fraction(1, 2))
        if count > size:
            sentence = say("mix_too_few", count=count, dataset=labels[place], size=size)
            raise DataInvalid.at(f"datasets.{place}.rows", sentence)
        if not count:
            raise DataInvalid.at(f"datasets.{place}.weight", say("mix_takes_none", dataset=labels[place]))
        found.append(count)
    return found


def chosen(size: int, count: int, seed: int, place: int) -> list[int]:
    """Chooses the rows of a dataset that train: distinct indices in the order of the file.

    Args:
        place: the dataset's position, so that parallel files in two languages give different rows.
    """
    return sorted(random.Random(f"mix {seed} {place}").sample(range(size), count))


def _scale(datasets: Sequence[Take], sizes: Sequence[int]) -> Fraction:
    """The number of rows for a weight of 1, so that no dataset gives more than it has."""
    scales = [size / _exact(each.weight) for each, size in zip(datasets, sizes, strict=True) if each.weight is not None]
    return min(scales, default=Fraction(0))


def _exact(weight: float) -> Fraction:
    """The exact decimal: 0.1 is one tenth."""
    return Fraction(str(weight))


def _numbered(path: str, place: int, names: RowNames, method: Method) -> dict[Part, list[Row]]:
    """The rows of a dataset, with unique numbers across datasets. Errors name the dataset."""
    with naming(names.labels[place - 1]):
        parts = read_rows(Path(path), method)
    return {part: [{**row, "row": numbered(row["row"], place)} for row in rows] for part, rows in parts.items()}


def _whole_rows(rows: Sequence[Row]) -> list[list[Row]]:
    """Groups rows by row of the file, so that the two rows that KTO makes from a pair stay together."""
    return [list(found) for _, found in groupby(rows, key=lambda row: row["row"])]
