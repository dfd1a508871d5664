"""The rows of one training: read, tokenised, split and planned, with a report of what was cut or left out."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainer_core.config import PreferenceConfig
from trainer_core.errors import DataInvalid, Detail
from trainer_core.methods import MODULES
from trainer_core.observer import Observer
from trainer_core.rows import Row, read_rows
from trainer_core.tokens import Renderer, TokenReport, encode_rows

# A share set apart for `evaluate_model()` when there is no validation data, and the fewest rows that allow it.
_FALLBACK_SHARE = 0.05
_FALLBACK_MIN_ROWS = 40


class PreferenceData:
    """Training and validation rows of a config.

    Attributes:
        train: planned, tokenised rows.
        validation: tokenised rows of the validation data or of `validation_split`; empty when there is neither.
        held_back: rows for `evaluate_model()` when `validation` is empty, never trained on.
    """

    def __init__(self, config: PreferenceConfig, renderer: Renderer, observer: Observer) -> None:
        self.config, self.renderer, self._observer = config, renderer, observer
        self._module = MODULES[config.preference_method]
        self.train: list[Row] = []
        self.validation: list[Row] = []
        self.held_back: list[Row] = []
        self._reports: dict[str, TokenReport] = {}

    def load(self) -> None:
        """Reads the files and prepares the rows. Raises `DataInvalid` or `DataOverlong`."""
        method = self.config.preference_method
        parts = read_rows(Path(self.config.dataset_path), method)
        train, validation = parts["train"], parts["validation"]
        if self.config.eval_dataset_path:
            validation = read_rows(Path(self.config.eval_dataset_path), method)["train"]
        encoded = self._encode("train", train)
        if validation:
            self.validation = self._planned(self._encode("validation", validation))
        elif self.config.validation_split:
            encoded, apart = self._split(encoded, self.config.validation_split)
            self.validation = self._planned(apart)
        elif len(encoded) >= _FALLBACK_MIN_ROWS:
            encoded, apart = self._split(encoded, _FALLBACK_SHARE)
            self.held_back = self._planned(apart)
        self.train = self._planned(encoded)
        self._check_labels()

    def prepare(self, rows: Iterable[Row]) -> list[Row]:
        """Raw rows in the form of `validation`. Raises as `load` does."""
        return self._planned(encode_rows(list(rows), self.renderer, self.config)[0])

    def tokenize_and_format_kto(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """For `Dataset.map(batched=True)`: adds `prompt_ids` and `completion_ids` to KTO rows."""
        return self._format(batch, ("prompt_ids", "completion_ids"))

    def tokenize_and_format(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """For `Dataset.map(batched=True)`: adds `prompt_ids`, `chosen_ids` and `rejected_ids` to pairs."""
        return self._format(batch, ("prompt_ids", "chosen_ids", "rejected_ids"))

    def report(self) -> dict[str, Any]:
        """Rows and tokens of each file's part, with cuts and drops, and how many rows each use got of them."""
        used = {
            "rows_trained_on": len(self.train),
            "rows_validated_on": len(self.validation),
            "rows_held_back": len(self.held_back),
        }
        return {**{part: report.as_dict() for part, report in self._reports.items()}, **used}

    def _format(self, batch: dict[str, list[Any]], columns: tuple[str, ...]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        encoded, _ = encode_rows(rows, self.renderer, self.config)
        return {column: [row[column] for row in encoded] for column in columns}

    def _encode(self, part: str, rows: list[Row]) -> list[Row]:
        encoded, report = encode_rows(rows, self.renderer, self.config)
        self._reports[part] = report
        touched = report.prompts_cut + report.completions_cut + len(report.rows_dropped)
        if touched:
            self._observer.warning(
                "rows_overlong",
                f"{part}: {report.prompts_cut} prompts and {report.completions_cut} answers were cut, "
                f"{len(report.rows_dropped)} of {len(rows)} rows dropped (max_prompt_length="
                f"{self.config.max_prompt_length}, max_length={self.config.max_length})",
            )
        return encoded

    def _planned(self, rows: list[Row]) -> list[Row]:
        return self._module.plan(rows, self.config)

    def _split(self, rows: list[Row], share: float) -> tuple[list[Row], list[Row]]:
        """Sets a seeded share of the prompts apart, so that no prompt is on both sides."""
        prompts = sorted({str(row["prompt"]) for row in rows})
        random.Random(self.config.seed).shuffle(prompts)
        apart = set(prompts[: max(1, round(len(prompts) * share))])
        kept = [row for row in rows if str(row["prompt"]) not in apart]
        if not kept:
            raise DataInvalid(
                "validation_split leaves no training row: all rows have one prompt",
                [Detail("validation_split", "leaves no training row")],
            )
        return kept, [row for row in rows if str(row["prompt"]) in apart]

    def _check_labels(self) -> None:
        if self.config.preference_method != "kto":
            return
        desirable = sum(row["label"] for row in self.train)
        undesirable = len(self.train) - desirable
        if not desirable or not undesirable:
            only = "desirable" if desirable else "undesirable"
            self._observer.warning("one_label_only", f"all training rows are {only}; KTO learns from the contrast of both")
