"""Tafdil's own format: `prompt`, `chosen`, `rejected`, or `prompt`, `completion`, `label`.

TRL's standard and conversational formats with an explicit prompt are the same: https://huggingface.co/docs/trl/dataset_formats
"""

from trainer_core.layouts import scored
from trainer_core.layouts.claims import Claim, Layout, Sample, renamed
from trainer_core.layouts.words import as_label
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_rules import Row

NAME = "own"
PAIRS = ("prompt", "chosen", "rejected")
LABELLED = ("prompt", "completion", "label")


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    is_pairs = any(all(name in row for name in PAIRS) for row in sample.rows)
    # A row that is both is a pair.
    is_labelled = any(
        all(name in row for name in LABELLED) and not ("chosen" in row or "rejected" in row) for row in sample.rows
    )
    if sample.has_whole or (is_labelled and not is_pairs and scored.is_scored(sample, options)):
        return None
    return claim(sample, is_pairs and not is_labelled) if is_pairs or is_labelled else None


def claim(sample: Sample, is_pairs: bool = False) -> Claim:
    """How to read rows in Tafdil's own format, complete or not.

    Args:
        is_pairs: the rows are pairs, so `completion` and `label` columns are ignored.
    """
    found = renamed(sample, **{name: name for name in dict.fromkeys((*PAIRS, *LABELLED))})
    mapping = {ours: theirs for ours, theirs in found.mapping.items() if not is_pairs or ours not in ("completion", "label")}
    labels = sample.values("label")
    is_numbers = bool(labels) and all(scored.as_score(label) is not None for label in labels)

    def fields(row: Row) -> Row:
        label = row.get("label")
        if is_numbers and not is_pairs and scored.as_score(label) is not None and as_label(label) is None:
            # The first rows have only 0 and 1 of them.
            raise scored.ask(Sample([*sample.rows, row]), ["label"])
        return found.fields(row)

    return Claim(mapping, fields)


LAYOUT = Layout(NAME, claims)
