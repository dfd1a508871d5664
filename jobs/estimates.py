"""When queued jobs will start: an estimate from what runs now and from how long jobs took lately."""

import heapq
from collections.abc import Sequence
from statistics import median


def seconds_until_starts(
    count: int, running: Sequence[tuple[float, float | None]], last_durations_s: Sequence[float]
) -> list[float | None]:
    """Seconds until each of the first `count` queued jobs is claimed; None when nothing is known to tell it from.

    Each worker that runs now takes the next job in order when it ends the one it has; a job is taken to last as long as the
    median of the last ones, or, before any has ended, as the running ones will have lasted.

    Args:
        running: of each running attempt, seconds since its start and seconds left (None: not known yet).
        last_durations_s: seconds that attempts took which ended well, lately.
    """
    known = [elapsed + left for elapsed, left in running if left is not None]
    lasts = [*last_durations_s] or known
    if not running or not lasts:
        return [None] * count
    typical = median(lasts)
    free_at = [max(0.0, typical - elapsed) if left is None else left for elapsed, left in running]
    heapq.heapify(free_at)
    # Each worker is free at the time at which it takes a job, and again when that job ends.
    return [heapq.heapreplace(free_at, free_at[0] + typical) for _ in range(count)]
