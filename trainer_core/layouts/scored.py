"""Answers with a score instead of a label: `prompt`, `completion`, and `label` with stars or points.

The threshold decides which scores are good. Only the person who gave the scores knows it.
"""

from typing import Any

from trainer_core.errors import DataUnclear
from trainer_core.layouts.claims import Claim, Layout, Sample, renaming, unclear, with_context
from trainer_core.layouts.forms import Misfit
from trainer_core.layouts.words import as_label
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_rules import Row, shown
from trainer_core.wording import say


def as_score(value: Any) -> float | None:
    """A finite number, also as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        score = float(value)
    except (ValueError, OverflowError):
        return None
    return score if abs(score) < float("inf") else None


def is_scored(sample: Sample, options: ReadingOptions, column: str = "label") -> bool:
    """Whether a column holds scores: numbers other than 0 and 1, or any numbers if a threshold is set."""
    if not sample.every(column, lambda value: as_score(value) is not None):
        return False
    return options.threshold is not None or not sample.every(column, lambda value: as_label(value) is not None)


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    if not sample.has("prompt", "completion") or sample.has_any("chosen", "rejected") or not is_scored(sample, options):
        return None
    return claim(sample, options, "label", prompt="prompt", completion="completion")


def claim(sample: Sample, options: ReadingOptions, column: str, **mapping: str) -> Claim:
    """How to read rows whose label is a score. Raises `DataUnclear` if there is no threshold."""
    if options.threshold is None:
        raise ask(sample, [column])
    threshold = options.threshold
    whole = with_context({**mapping, "label": column}, sample)
    rename = renaming(whole)

    def fields(row: Row) -> Row:
        found = rename(row)
        if "label" in found:
            score = as_score(found["label"])
            if score is None:
                raise Misfit("label", say("score", value=shown(row[column])))
            found["label"] = score >= threshold
        return found

    return Claim(whole, fields, is_scored=True)


def ask(sample: Sample, columns: list[str]) -> DataUnclear:
    """The error that asks for the lowest good score."""
    scores = [score for value in sample.values(columns[0]) if (score := as_score(value)) is not None]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    guess = high if low == high else (low + high) / 2
    values = {"column": columns[0], "low": low, "high": high, "example": guess}
    return unclear("threshold", "threshold_unclear", columns, guess, sample.rows, **values)


LAYOUT = Layout("scored", claims)
