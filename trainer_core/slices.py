"""Preference metrics by slice: of the rows of one variety, or of one kind that a file names.

A row's slice is its field `dialect`, or else `slice`. Computed from scores that exist; runs no model.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from trainer_core.methods.base import PreferenceMethod
from trainer_core.row_rules import Row
from trainer_core.scoring import Scores

FIELDS = ("dialect", "slice")
MOST = 12
"""At most this many slices have metrics of their own; the rows of all others are one."""
_LONGEST = 40


def slice_of(row: Row) -> str | None:
    """The name of a row's slice; None if it names none."""
    for field in FIELDS:
        value = row.get(field)
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())[:_LONGEST]
    return None


def slices_of(
    method: PreferenceMethod[Any], rows: Sequence[Row], scores: Mapping[str, Scores], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Each slice with its number of rows and its metrics, the largest first. Empty if no row names a slice.

    Rows without a slice, and those of slices beyond the most, come last under the name None.

    Args:
        names: the metrics to report, of those that the method has.
    """
    places: defaultdict[str | None, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[slice_of(row)].append(place)
    unnamed = places.pop(None, [])
    if not places:
        return []
    ordered = sorted(places.items(), key=lambda item: (-len(item[1]), str(item[0])))
    rest = sorted([*unnamed, *(place for _, found in ordered[MOST:] for place in found)])
    found = [*ordered[:MOST], *([(None, rest)] if rest else [])]
    return [{"name": name, "rows": len(own), **_metrics(method, rows, scores, own, names)} for name, own in found]


def _metrics(
    method: PreferenceMethod[Any],
    rows: Sequence[Row],
    scores: Mapping[str, Scores],
    places: Sequence[int],
    names: Sequence[str],
) -> dict[str, float | None]:
    metrics = method.metrics({name: found.at(places) for name, found in scores.items()}, [rows[place] for place in places])
    return {name: metrics[name] for name in names if name in metrics}
