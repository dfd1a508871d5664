"""Estimates when queued jobs will start, from the running jobs and recent durations."""

import heapq
from collections.abc import Sequence
from statistics import median


def seconds_until_starts(
    count: int, running: Sequence[tuple[float, float | None]], last_durations_s: Sequence[float]
) -> list[float | None]:
    """Seconds until each of the first `count` queued jobs is claimed; None if there is no basis for an estimate.

    Assumes that each busy worker takes the next job in order when its current one ends, and that a job lasts as long as
    the median of the last ones or, before any has ended, as the running ones will have lasted.

    Args:
        running: for each running attempt, seconds since its start and seconds left (None: not known yet).
        last_durations_s: seconds that the latest successful attempts took.
    """
    known = [elapsed + left for elapsed, left in running if left is not None]
    lasts = [*last_durations_s] or known
    if not running or not lasts:
        return [None] * count
    typical = median(lasts)
    free_at = [max(0.0, typical - elapsed) if left is None else left for elapsed, left in running]
    heapq.heapify(free_at)
    # When each worker takes its next job: as soon as its current one ends.
    return [heapq.heapreplace(free_at, free_at[0] + typical) for _ in range(count)]
