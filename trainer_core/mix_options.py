"""The options of each dataset in a mix, in a config or a job spec. Torch-free.

`mixing` implements them.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainer_core.wording import say

MOST_DATASETS = 100


class Take(BaseModel):
    """How much of a dataset to use: a number of rows, a share of the mix, or all rows."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    rows: int | None = Field(
        None,
        ge=1,
        le=2**31 - 1,
        description="The number of training rows to take, chosen by `seed` without repetition. A pair is one row. Without "
        "`rows` and `weight`, all rows are used.",
    )
    weight: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="The share of the mix, relative to the other weights. The dataset that runs out first gives all its "
        "rows, and the others give rows in proportion, chosen by `seed`. Set it on all datasets or on none.",
    )
    name: str | None = Field(
        None, min_length=1, max_length=200, description="The name in messages, reports and the model card."
    )

    @model_validator(mode="after")
    def _one_measure(self) -> "Take":
        if self.rows is not None and self.weight is not None:
            raise ValueError(say("mix_two_measures"))
        return self


class MixSource(Take):
    """A dataset in a mix, for the library. The default `name` is the file's."""

    path: str = Field(min_length=1, description="The file of rows, as in `dataset_path`.")

    @property
    def label(self) -> str:
        return self.name or PurePath(self.path).name


def check_mix(datasets: Sequence[Take], sources: Sequence[str]) -> None:
    """Raises `ValueError` if the datasets cannot be mixed.

    Args:
        sources: where each dataset comes from. Duplicates are refused, because they could repeat rows.
    """
    weighted = [dataset.weight is not None for dataset in datasets]
    if any(weighted) and not all(weighted):
        raise ValueError(say("mix_weight_missing", place=weighted.index(False) + 1))
    twice = next((source for source, count in Counter(sources).items() if count > 1), None)
    if twice is not None:
        raise ValueError(say("mix_listed_twice", source=twice))


def check_sources(datasets: Sequence[MixSource]) -> None:
    """`check_mix` for files."""
    check_mix(datasets, [os.path.realpath(dataset.path) for dataset in datasets])
