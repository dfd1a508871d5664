"""The GPU benchmark keeps to its minutes, keeps what was found, and says what it did not reach."""

from functools import partial
from pathlib import Path

import pytest

from benchmarks.gpu.arm import ARMS, Arm
from benchmarks.gpu_check import Outcome, as_markdown, run_arm, run_in_order
from tests.forking import fork


class Clock:
    """A clock that arms move on."""

    def __init__(self, takes: dict[str, float]) -> None:
        self.now, self.takes = 1000.0, takes
        self.limits: dict[str, float | None] = {}

    def __call__(self) -> float:
        return self.now

    def run(self, arm: Arm, seconds: float | None) -> Outcome:
        self.limits[arm.name] = seconds
        takes = self.takes.get(arm.name, arm.seconds)
        is_cut = seconds is not None and takes > seconds
        self.now += seconds if is_cut and seconds is not None else takes
        return Outcome(arm.name, "cut" if is_cut else "ended")


def states(outcomes: list[Outcome]) -> dict[str, str]:
    return {one.arm: one.state for one in outcomes}


def test_every_arm_runs_when_there_is_time() -> None:
    clock = Clock({})
    outcomes = run_in_order(ARMS, None, clock.run, clock)
    assert set(states(outcomes).values()) == {"ended"}
    assert set(clock.limits.values()) == {None}


def test_the_whole_order_fits_into_what_it_says_it_takes() -> None:
    clock = Clock({})
    outcomes = run_in_order(ARMS, sum(arm.seconds for arm in ARMS), clock.run, clock)
    assert set(states(outcomes).values()) == {"ended"}


def test_an_arm_that_has_too_little_time_is_not_begun_but_a_shorter_one_after_it_is() -> None:
    clock = Clock({})
    found = run_in_order([Arm("a", "?", 50), Arm("b", "?", 100), Arm("c", "?", 20)], 90, clock.run, clock)
    assert states(found) == {"a": "ended", "b": "not reached", "c": "ended"}


def test_an_arm_that_takes_too_long_leaves_time_to_the_others() -> None:
    clock = Clock({"a": 10_000})
    found = run_in_order([Arm("a", "?", 20), Arm("b", "?", 50)], 100, clock.run, clock)
    assert states(found) == {"a": "cut", "b": "ended"}
    assert clock.limits["a"] == 30
    assert clock.limits["b"] == 70


@pytest.mark.parametrize("minutes", range(1, 12))
def test_no_order_takes_longer_than_its_minutes(minutes: int) -> None:
    clock = Clock({arm.name: 3 * arm.seconds for arm in ARMS[::2]})
    run_in_order(ARMS, 60 * minutes, clock.run, clock)
    assert clock.now - 1000 <= 60 * minutes


def test_an_arm_that_fails_says_why(tmp_path: Path) -> None:
    outcome = run_arm(ARMS[1], 120, "no-such-shape", tmp_path, tmp_path, start=partial(fork, trains=True))
    assert outcome.state == "failed"
    assert outcome.error is not None
    assert "KeyError: 'no-such-shape'" in outcome.error


def test_a_page_shows_rows_and_what_was_not_reached() -> None:
    outcomes = [
        Outcome("machine", "ended", 3.2, [{"device": "a|b"}]),
        Outcome("parity", "cut", 9.0, [{"path": "plain", "ratio": 1.0}, {"path": "kernel", "ratio": 0.9}]),
        Outcome("large", "not reached"),
    ]
    text = as_markdown(outcomes, "tiny")
    assert "| device | a/b |" in text
    assert "| path | ratio |\n| --- | --- |\n| plain | 1.0 |\n| kernel | 0.9 |" in text
    assert "`large`: not reached." in text
