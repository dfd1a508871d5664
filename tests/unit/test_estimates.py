"""The estimate of when a queued job starts, on numbers worked out by hand."""

import pytest

from jobs.estimates import seconds_until_starts


@pytest.mark.parametrize(
    ("position", "running", "durations", "expected"),
    [
        # One worker, 30 s left: the first job starts then, the second a median duration (100 s) later.
        (1, [(70, 30)], [90, 100, 110], 30),
        (2, [(70, 30)], [90, 100, 110], 130),
        # Two workers free in 10 and 40 s: places 1, 2 at 10, 40; then at 110 and 140.
        (2, [(0, 10), (0, 40)], [100], 40),
        (3, [(0, 10), (0, 40)], [100], 110),
        (4, [(0, 10), (0, 40)], [100], 140),
        # An attempt that has not told yet is taken to last as long as the median; one beyond it, to end now.
        (1, [(60, None)], [100], 40),
        (1, [(160, None)], [100], 0),
        # Nothing has ended yet: jobs last as long as the running one will have.
        (2, [(60, 40)], [], 140),
        # Nothing to tell it from.
        (1, [(60, None)], [], None),
        (1, [], [100], None),
    ],
)
def test_hand_made_cases(
    position: int, running: list[tuple[float, float | None]], durations: list[float], expected: float | None
) -> None:
    assert seconds_until_starts(position, running, durations)[-1] == expected
