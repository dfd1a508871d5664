"""Downsamples curves to what a chart a few hundred pixels wide can show."""

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple


class CurvePoint(NamedTuple):
    """A metric's value at a step of an attempt; None if it was not finite or undefined."""

    name: str
    attempt: int
    step: int
    value: float | None


def as_csv(points: Iterable[CurvePoint]) -> str:
    """CSV with the columns name, attempt, step and value. Undefined values are empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["name", "attempt", "step", "value"])
    writer.writerows([p.name, p.attempt, p.step, "" if p.value is None else repr(p.value)] for p in points)
    return text.getvalue()


def downsample(points: Sequence[CurvePoint], max_points: int) -> list[CurvePoint]:
    """At most `max_points` per curve: its ends, and the lowest and highest point of each interval between them.

    Points are unchanged and stay in order, so a spike keeps its height and its step; averages would hide it.

    Args:
        points: ordered by name, attempt and step.
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
        # A non-finite value is a gap, neither low nor high.
        known = [value for value in values[start:end] if value is not None]
        kept |= {values.index(edge(known), start, end) for edge in (min, max)} if known else {start}
    return [curve[place] for place in sorted(kept)]
