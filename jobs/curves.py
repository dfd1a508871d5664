"""Curves with fewer points: what a chart of some hundred pixels can show."""

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple


class CurvePoint(NamedTuple):
    """A metric's value at a step of an attempt; None where it was not finite or not defined."""

    name: str
    attempt: int
    step: int
    value: float | None


def as_csv(points: Iterable[CurvePoint]) -> str:
    """A table with the columns name, attempt, step, value; a value that is not defined is empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["name", "attempt", "step", "value"])
    writer.writerows([p.name, p.attempt, p.step, "" if p.value is None else repr(p.value)] for p in points)
    return text.getvalue()


def downsample(points: Sequence[CurvePoint], max_points: int) -> list[CurvePoint]:
    """At most `max_points` of each curve: its ends, and of each stretch between them the lowest and the highest point.

    Points are taken as they are and stay in order, so a spike keeps its height and its step; averages would hide it.

    Args:
        points: by name, attempt and step.
        max_points: at least 4.
    """
    found: list[CurvePoint] = []
    for _, curve in groupby(points, key=lambda point: (point.name, point.attempt)):
        found += _thinned(list(curve), max_points)
    return found


def _thinned(curve: list[CurvePoint], max_points: int) -> list[CurvePoint]:
    if len(curve) <= max_points:
        return curve
    values = [point.value for point in curve]
    last = len(curve) - 1
    stretches = (max_points - 2) // 2
    kept = {0, last}
    for i in range(stretches):
        start, end = 1 + i * (last - 1) // stretches, 1 + (i + 1) * (last - 1) // stretches
        # A value that is not finite is a gap; it counts as neither low nor high.
        known = [value for value in values[start:end] if value is not None]
        kept |= {values.index(edge(known), start, end) for edge in (min, max)} if known else {start}
    return [curve[place] for place in sorted(kept)]
