"""Signs of a training that goes wrong, in its history."""

from typing import Any

import pytest

from trainer_core.guards import signs
from trainer_core.samples import repetition


def history(name: str, *values: float) -> list[dict[str, Any]]:
    return [{"step": 10 * i, name: value} for i, value in enumerate(values)]


def codes(entries: list[dict[str, Any]]) -> list[str]:
    return [sign.code for sign in signs(entries)]


@pytest.mark.parametrize(
    ("name", "values", "code"),
    [
        ("eval_chosen_nll", (1.0, 1.2, 1.6), "chosen_collapse"),
        ("logps/chosen", (-20, -21, -20, -22, -20, -35, -40, -41, -45, -50), "chosen_collapse"),
        ("eval_sample_repetition", (0.1, 0.7), "repetition"),
        ("eval_sample_repetition", (0.7,), "repetition"),
        ("eval_sample_tokens", (20, 41), "length_drift"),
        ("eval_sample_tokens", (20, 9), "length_drift"),
        ("grad_norm", (1.5, 0.0, 0.0, 0.0), "no_gradient"),
    ],
)
def test_a_bad_sign_is_named_with_its_numbers(name: str, values: tuple[float, ...], code: str) -> None:
    found = list(signs(history(name, *values)))
    assert [sign.code for sign in found] == [code]
    assert f"step {10 * (len(values) - 1)}" in found[0].message


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("eval_chosen_nll", (1.0, 0.5, 1.4)),
        ("eval_chosen_nll", (3.0,)),
        ("logps/chosen", (-20, -45, -20, -22, -20, -18, -50, -20, -19, -21)),
        ("logps/chosen", (-20, -90)),
        ("eval_sample_repetition", (0.8, 0.7)),
        ("eval_sample_tokens", (20, 30, 15)),
        ("eval_sample_tokens", (1, 3)),
        ("loss", (1, 100)),
        ("grad_norm", (0.0, 0.0)),
        ("grad_norm", (0.0, 0.0, 1e-9)),
        ("grad_norm", (0.0, 0.0, 0.0, 0.3)),
    ],
)
def test_what_is_usual_is_no_sign(name: str, values: tuple[float, ...]) -> None:
    assert codes(history(name, *values)) == []


def test_steps_without_a_gradient_are_named() -> None:
    (found,) = signs(history("grad_norm", 1.0, 0.0, 0.0, 0.0))
    assert "steps 10, 20, 30" in found.message
    assert "max_length" in found.message


def test_evaluations_outweigh_the_batches() -> None:
    """What single batches say of the chosen answers is noise as long as there are evaluations."""
    batches = history("logps/chosen", *[-20] * 5, *[-60] * 5)
    assert codes(batches) == ["chosen_collapse"]
    assert codes([*batches, *history("eval_chosen_nll", 1.0, 1.0)]) == []


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([], 0), ([1, 2, 3], 0), ([1, 2, 3, 4, 5, 6], 0), ([1] * 8, 4 / 5), ([1, 2, 3, 4] * 2, 1 / 5)],
)
def test_repetition(ids: list[int], expected: float) -> None:
    """Runs of four: eight equal tokens hold five runs, one of which is new."""
    assert repetition(ids) == pytest.approx(expected)
