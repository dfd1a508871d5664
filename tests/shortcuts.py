"""How well the traits of an answer alone find the preferred side: one by one, and all together in a logistic regression."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer_core.traits import TRAITS, label_auc, pair_share

Row = dict[str, Any]
RIDGE = 1.0
STEPS = 30


def rules(rows: Sequence[Row]) -> dict[str, float]:
    """For each trait, how often "more of it" or "less of it" is right, whichever is right more often; KTO rows by AUC."""
    found: dict[str, float] = {}
    for trait in TRAITS:
        if "chosen" in rows[0]:
            sides = [[trait.measure(row["prompt"], row[side]) for row in rows] for side in ("chosen", "rejected")]
            share = pair_share(*sides)
        else:
            values = [trait.measure(row["prompt"], row["completion"]) for row in rows]
            share = label_auc(values, [row["label"] for row in rows])
        assert share is not None
        found[trait.name] = max(share, 1 - share)
    return found


def regression(train: Sequence[Row], held_out: Sequence[Row]) -> float:
    """Share of held-out rows in which a logistic regression over all traits, fitted on the training rows, is right.

    Pairs are seen as the differences of their sides, without an intercept; ties count a half.
    """
    columns, labels = _columns(train), _labels(train)
    centre = np.zeros(columns.shape[1]) if "chosen" in train[0] else columns.mean(axis=0)
    spread = np.sqrt(((columns - centre) ** 2).mean(axis=0))
    varies = spread > 0

    def standardised(rows: Sequence[Row]) -> np.ndarray:
        scaled = (_columns(rows)[:, varies] - centre[varies]) / spread[varies]
        return scaled if "chosen" in rows[0] else np.hstack([scaled, np.ones((len(rows), 1))])

    weights = _fitted(standardised(train), labels)
    signs = np.sign(standardised(held_out) @ weights) * np.where(_labels(held_out) == 1, 1, -1)
    return float(((signs + 1) / 2).mean())


def _fitted(columns: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Newton's method on the penalised likelihood."""
    weights = np.zeros(columns.shape[1])
    for _ in range(STEPS):
        probabilities = 1 / (1 + np.exp(-columns @ weights))
        gradient = columns.T @ (labels - probabilities) - RIDGE * weights
        curvature = (columns * (probabilities * (1 - probabilities))[:, None]).T @ columns + RIDGE * np.eye(len(weights))
        weights = weights + np.linalg.solve(curvature, gradient)
    return weights


def _columns(rows: Sequence[Row]) -> np.ndarray:
    def measured(side: str) -> np.ndarray:
        return np.array([[trait.measure(row["prompt"], row[side]) for trait in TRAITS] for row in rows])

    return measured("chosen") - measured("rejected") if "chosen" in rows[0] else measured("completion")


def _labels(rows: Sequence[Row]) -> np.ndarray:
    return np.array([float(row.get("label", True)) for row in rows])
