"""Where the library reads and writes: the part of a config that clients of the service cannot set. Torch-free."""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from trainer_core.file_cache import FileCache
from trainer_core.mix_options import MOST_DATASETS, MixSource, check_sources
from trainer_core.wording import say


class LibraryPaths(BaseModel):
    """Where the library reads and writes; the service chooses these for a job."""

    dataset_path: str | None = Field(
        None,
        min_length=1,
        description="The file of training rows, of any supported kind. Set this or `datasets`.",
    )
    datasets: list[MixSource] | None = Field(
        None,
        min_length=1,
        max_length=MOST_DATASETS,
        description="Several files of training rows instead of `dataset_path`, each with a `path` and optionally `rows` or "
        "a `weight`. Their validation parts are combined.",
    )
    eval_dataset_path: str | None = Field(None, description="Validation rows.")
    output_dir: str = Field("", description="Where the model and checkpoints go; default `./checkpoints/<method>`.")
    cache_dir: str | None = Field(
        None,
        description="Where token ids and the reference's log-probabilities are cached for other runs; `null`: no cache.",
    )
    cache_gib: float = Field(10, ge=0, description="Maximum size of `cache_dir`; least recently used files go first.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dataset_path is None) == (self.datasets is None):
            raise ValueError(say("one_source"))
        check_sources(self.datasets or [])
        return self

    def file_cache(self) -> FileCache | None:
        """The cache in `cache_dir`; None if there is none."""
        return FileCache(Path(self.cache_dir), int(self.cache_gib * 2**30)) if self.cache_dir else None

    def model_post_init(self, context: Any, /) -> None:
        method = getattr(self, "method_name", None)
        if method and not self.output_dir:
            object.__setattr__(self, "output_dir", f"./checkpoints/{method}")
