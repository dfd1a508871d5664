"""The rows of a run: read, tokenised, split and planned, with a report of what was cut or left out."""

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

from datasets import Dataset

from trainer_core import mixing, tokenizer_check
from trainer_core.config import PreferenceConfig
from trainer_core.errors import DataInvalid, DataOverlong
from trainer_core.file_cache import FileCache
from trainer_core.methods import method_of
from trainer_core.mixing import ReadRows
from trainer_core.observer import Observer
from trainer_core.plan import fingerprint, suggested_weights
from trainer_core.row_encoding import TokenReport, encode_rows
from trainer_core.row_names import RowNames
from trainer_core.row_rules import Row, comparable
from trainer_core.row_signal import DROPPED
from trainer_core.rows import MAX_ERRORS, check_rows
from trainer_core.tokens import Renderer
from trainer_core.wording import say

# The share set aside for `evaluate_model()` when there is no validation data, and the fewest rows that allow it.
_FALLBACK_SHARE = 0.05
_FALLBACK_MIN_ROWS = 40
# All rows of a prompt go to one side. That may raise the share to this, or to twice the requested share.
_MOST_APART = 0.25


class PreferenceData:
    """Training and validation rows of a config.

    Attributes:
        train: planned, tokenised rows.
        validation: tokenised rows of the validation data or of `validation_split`; empty if there is neither.
        held_back: rows for `evaluate_model()` if `validation` is empty; never trained on.
    """

    def __init__(self, config: PreferenceConfig, renderer: Renderer, observer: Observer) -> None:
        self.config, self.renderer, self._observer = config, renderer, observer
        self._method = method_of(config)
        self.train: list[Row] = []
        self.validation: list[Row] = []
        self.held_back: list[Row] = []
        self._left_over = 0
        self._read = ReadRows([], [])
        self._reports: dict[str, TokenReport] = {}
        self._cache = config.file_cache()

    def load(self) -> None:
        """Reads the files and prepares the rows. Raises `DataInvalid` or `DataOverlong`."""
        self._read = mixing.read(self.config)
        train, validation = self._read.train, self._read.validation
        self._check_tokenizer(train)
        encoded = self._encode("train", train)
        if validation:
            self.validation = self._arranged(self._encode("validation", validation))
        elif self.config.validation_split:
            encoded, apart = self._split(encoded, self.config.validation_split)
            self.validation = self._arranged(apart)
        elif len(encoded) >= _FALLBACK_MIN_ROWS:
            encoded, apart = self._split(encoded, _FALLBACK_SHARE)
            self.held_back = self._arranged(apart)
        self._check_overlap(encoded)
        self.train = self._method.plan(encoded)
        self._left_over = len(encoded) - len(self.train)
        for code, message in self._method.row_warnings(self.train):
            self._observer.warning(code, message)

    @property
    def names(self) -> RowNames:
        """The names of rows in messages."""
        return self._read.names

    @property
    def read_rows(self) -> list[Row]:
        """The training rows as they were read, before any cut."""
        return self._read.train

    @property
    def plan_sha256(self) -> str:
        """The hash of the rows in training order, and of the mix if there are several datasets."""
        return fingerprint(self.train, [taken.rows_taken for taken in self._read.taken])

    def prepare(self, rows: Iterable[Row]) -> list[Row]:
        """Raw rows in the form of `validation`. Raises as `load` does."""
        return self._arranged(self.encoded(rows))

    def encoded(self, rows: Iterable[Row]) -> list[Row]:
        """Raw rows with their token ids, in their order. Raises as `load` does."""
        return self._checked("rows", check_rows(rows, self.config.preference_method))[0]

    def dataset(self, rows: list[Row]) -> Dataset:
        """Rows for TRL's trainers: only the columns that they compute with, and the row numbers."""
        return Dataset.from_list([{name: row[name] for name in self._method.columns if name in row} for row in rows])

    def planned(self, dataset: Dataset) -> Dataset:
        """A dataset from `tokenize_and_format` or `tokenize_and_format_kto`, in training order."""
        rows = [{"row": number, **row} for number, row in enumerate(dataset, start=1)]  # pyright: ignore
        return self.dataset(self._method.plan(rows))

    def tokenize_and_format_kto(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """For `Dataset.map(batched=True)`: adds `prompt_ids` and `completion_ids` to KTO rows, and cuts or drops rows."""
        return self._format(batch)

    def tokenize_and_format(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """For `Dataset.map(batched=True)`: adds `prompt_ids`, `chosen_ids` and `rejected_ids` to pairs, likewise."""
        return self._format(batch)

    def report(self, shown_rows: int = 20) -> dict[str, Any]:
        """Rows and tokens of each part, with cuts and drops, and how many rows each use received.

        With several datasets, `datasets` has each one's rows, and rows have names such as `formal.jsonl:12`.

        Args:
            shown_rows: how many cut or dropped rows to name.
        """
        used: dict[str, Any] = {
            "rows_trained_on": len(self.train),
            "rows_validated_on": len(self.validation),
            "rows_held_back": len(self.held_back),
            "rows_left_over": self._left_over,
        }
        if self.config.rows == "labels":
            desirable = sum(row["label"] for row in self.train)
            counts = {"desirable_rows": desirable, "undesirable_rows": len(self.train) - desirable}
            used |= {**counts, "suggested_weights": suggested_weights(*counts.values())}
        if self._read.taken:
            used["datasets"] = self._read.report(self.train)
        return {**{part: report.as_dict(shown_rows) for part, report in self._reports.items()}, **used}

    def _format(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        checked = check_rows(rows, self.config.preference_method)
        self._check_confidence(checked)
        encoded, report = encode_rows(checked, self.renderer, self.config)
        self._warn("rows", len(checked), report)
        answers = ("completion", "label") if self.config.rows == "labels" else ("chosen", "rejected")
        names = dict.fromkeys([*batch, "prompt_ids", *answers, *(f"{name}_ids" for name in answers if name != "label")])
        return {name: [row.get(name) for row in encoded] for name in names}

    def _encode(self, part: str, rows: list[Row]) -> list[Row]:
        """Rows of the files with their token ids; `report` includes them."""
        encoded, self._reports[part] = self._checked(part, rows, self._cache)
        return encoded

    def _checked(self, part: str, rows: list[Row], cache: FileCache | None = None) -> tuple[list[Row], TokenReport]:
        """Rows with their token ids. Warns about everything cut, dropped or found; raises if no row is left."""
        self._check_confidence(rows)
        encoded, report = encode_rows(rows, self.renderer, self.config, cache, names=self.names)
        self._warn(part, len(rows), report)
        if not encoded:
            raise _none_left(part, rows, report)
        return encoded, report

    def _warn(self, part: str, rows: int, report: TokenReport) -> None:
        which = say(f"part.{part}")
        limits = {"prompt_limit": self.config.max_prompt_length, "limit": self.config.max_length}
        if report.rows_cut:
            counts = {"prompts": report.prompts_cut, "answers": report.completions_cut}
            self._observer.warning("rows_overlong", say("rows_overlong_cut", part=which, **counts, **limits))
        if report.rows_dropped:
            counts = {"dropped": len(report.rows_dropped), "rows": rows}
            self._observer.warning("rows_overlong", say("rows_overlong_dropped", part=which, **counts, **limits))
        for code, message in report.findings.messages(which, self.config.special_tokens_in_text, report.names):
            self._observer.warning(code, message)

    def _check_tokenizer(self, rows: list[Row]) -> None:
        loss = tokenizer_check.check(self.renderer.tokenizer, rows, self.config.model_name)
        if loss:
            self._observer.warning("tokenizer_loses_text", loss)
        if self.renderer.stop.is_model_unaware:
            end = self.renderer.tokenizer.decode(list(self.renderer.stop.template))
            sentence = say("base_model_with_template", end=end, model=self.config.model_name)
            self._observer.warning("base_model_with_template", sentence)
        if self.renderer.template and (unread := self.renderer.template.unread):
            self._observer.warning("template_option_unread", say("template_option_unread", names=unread))

    def _check_overlap(self, train: list[Row]) -> None:
        """Warns about prompts on both sides: validating on a trained prompt proves nothing."""
        seen = {comparable(row["prompt"]) for row in train}
        both = {prompt for row in self.validation or self.held_back if (prompt := comparable(row["prompt"])) in seen}
        if both:
            self._observer.warning("validation_overlaps", say("validation_overlaps", n=len(both)))

    def _check_confidence(self, rows: list[Row]) -> None:
        if not self.config.weighs_confidence:
            return
        wrong = [
            (row["row"], str(row["confidence"])[:40])
            for row in rows
            if row.get("confidence") is not None and not _is_share(row["confidence"])
        ]
        if wrong:
            number, value = wrong[0]
            details = [
                self.names.detail("confidence", say("confidence_value", value=value), number)
                for number, value in wrong[:MAX_ERRORS]
            ]
            raise DataInvalid(say("confidence_invalid", line=self.names.line(number), value=value), details)

    def _arranged(self, rows: list[Row]) -> list[Row]:
        return self._method.arrange(rows)

    def _split(self, rows: list[Row], share: float) -> tuple[list[Row], list[Row]]:
        """Sets a seeded share aside by prompt, so that no prompt is on both sides.

        If no prompt's rows fit into the share, it takes the prompt with the fewest rows. If even that is far more than the
        share, or all rows have the same prompt, rows are drawn one by one.
        """
        keys: list[Any] = [comparable(row["prompt"]) for row in rows]
        apart = self._drawn(keys, share) or self._smallest(keys, share)
        if not apart:
            keys = list(range(len(rows)))
            apart = self._drawn(keys, share)
        kept = [row for row, key in zip(rows, keys, strict=True) if key not in apart]
        if not kept:
            raise DataInvalid.at("validation_split", say("split_leaves_none"))
        return kept, [row for row, key in zip(rows, keys, strict=True) if key in apart]

    def _smallest(self, keys: list[Any], share: float) -> set[Any]:
        counts = Counter(keys)
        key, count = min(counts.items(), key=lambda item: (item[1], item[0]))
        return {key} if len(counts) > 1 and count <= len(keys) * max(_MOST_APART, 2 * share) else set()

    def _drawn(self, keys: list[Any], share: float) -> set[Any]:
        """Keys, drawn by seed, that together have at most a share of the rows."""
        counts = Counter(keys)
        order = sorted(counts)
        random.Random(self.config.seed).shuffle(order)
        left = max(1, round(len(keys) * share))
        drawn: set[Any] = set()
        for key in order:
            if counts[key] <= left:
                drawn.add(key)
                left -= counts[key]
        return drawn


def _none_left(part: str, rows: list[Row], report: TokenReport) -> DataInvalid:
    """The error when no row is left, with the reasons."""
    which = say(f"part.{part}")
    if not rows:
        return DataInvalid(say("part_without_rows", part=which))
    if not report.findings.dropped:
        return DataOverlong(say("all_rows_overlong", part=which))
    reasons = report.findings.reasons()
    if report.rows_dropped:
        overlong = say("count.rows", n=len(report.rows_dropped))
        reasons.append(say("rows_because", rows=overlong, reason=say("dropped.overlong")))
    numbers = [(code, number) for code in DROPPED for number in report.findings.rows.get(code, [])]
    details = [report.names.detail("row", say(f"dropped.{code}"), number) for code, number in numbers[:MAX_ERRORS]]
    error = DataOverlong if report.rows_cut else DataInvalid
    return error(say("no_rows_left", part=which, reasons=reasons), details)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
