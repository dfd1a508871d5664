"""Seconds of a run's phases."""

from collections.abc import Sequence
from itertools import pairwise


def spans(began: Sequence[tuple[str, float]], ended: float) -> dict[str, float]:
    """Seconds of each phase, from when each began, by name and any clock, until the end. A phase may begin several times."""
    found: dict[str, float] = {}
    for (name, at), (_, over_at) in pairwise([*began, ("", ended)]):
        found[name] = found.get(name, 0.0) + over_at - at
    return found
