"""The order of training, its batches, and KTO's partners."""

import random
from itertools import pairwise
from typing import Any

import pytest

from trainer_core.plan import batched_order, fingerprint, plan_kto, plan_pairs, suggested_weights
from trainer_core.row_rules import Row


def rows(desirable: int, undesirable: int, prompts: int | None = None) -> list[Row]:
    """Rows sorted by label, the worst order a file can have."""
    labels = [True] * desirable + [False] * undesirable
    return [
        {"prompt": f"p{i % (prompts or len(labels))}", "prompt_ids": [i], "completion_ids": [i, 0], "label": label}
        for i, label in enumerate(labels)
    ]


def batches(planned: list[Row], size: int) -> list[list[Row]]:
    return [planned[i : i + size] for i in range(0, len(planned), size)]


@pytest.mark.parametrize(("desirable", "undesirable"), [(40, 40), (41, 40), (60, 20), (22, 62), (7, 4)])
@pytest.mark.parametrize("size", [4, 5])
def test_every_batch_has_both_labels(desirable: int, undesirable: int, size: int) -> None:
    planned = plan_kto(rows(desirable, undesirable), size, seed=1)
    assert all({row["label"] for row in batch} == {True, False} for batch in batches(planned, size))


@pytest.mark.parametrize("size", [2, 4, 8, 32])
def test_a_class_ratio_of_one_to_twenty(size: int) -> None:
    """The rare label comes in every batch that can have one, else at even distances."""
    planned = plan_kto(rows(400, 20), size, seed=1)
    counts = [sum(not row["label"] for row in batch) for batch in batches(planned, size)]
    assert sum(counts) == 20
    if size == 32:
        assert set(counts) == {1, 2}
    else:
        places = [i for i, count in enumerate(counts) if count]
        gaps = [later - earlier for earlier, later in pairwise(places)]
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("count", [16, 17, 18, 19])
def test_a_kl_partner_answers_another_prompt(count: int) -> None:
    given = rows(count // 2, count - count // 2, prompts=count // 2 + 1)
    prompts = {row["completion_ids"][0]: row["prompt"] for row in given}
    for row in [*plan_kto(given, 4, seed=3), *plan_kto(given, 4, seed=3, keep_all=True)]:
        assert prompts[row["KL_completion_ids"][0]] != row["prompt"]


def flattened(pairs: int) -> list[Row]:
    """Pairs taken apart, so that neighbouring rows have one prompt."""
    return [
        {"prompt": f"p{i}", "prompt_ids": [i], "completion_ids": [i, int(label)], "label": label}
        for i in range(pairs)
        for label in (True, False)
    ]


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_flattened_pairs_part(size: int) -> None:
    planned = plan_kto(flattened(40), size, seed=5)
    for batch in batches(planned, size):
        assert {row["label"] for row in batch} == {True, False}
        if len(batch) > 3:
            assert all(first["prompt"] != second["prompt"] for first, second in pairwise(batch))
    assert all(row["KL_completion_ids"][0] != row["prompt_ids"][0] for row in planned)


def test_a_partner_is_the_neighbour_where_its_prompt_differs() -> None:
    """TRL's own rotation, so that both estimate the same KL term."""
    for batch in batches(plan_kto(rows(20, 20), 4, seed=2), 4):
        for i, row in enumerate(batch):
            assert row["KL_completion_ids"] == batch[i - 1]["completion_ids"]


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_one_prompt_alone_still_plans(count: int) -> None:
    planned = plan_kto(rows(count, count, prompts=1), 4, seed=0)
    assert all(row["KL_completion_ids"] != row["completion_ids"] for row in planned)


@pytest.mark.parametrize(("count", "kept"), [(20, 20), (21, 20), (22, 22), (1, 1), (5, 4)])
def test_no_batch_has_one_row(count: int, kept: int) -> None:
    """A row of the more frequent label is left out; an evaluation leaves none out."""
    given = rows(count // 3, count - count // 3)
    planned = plan_kto(given, 4, seed=1)
    assert len(planned) == kept
    assert sum(row["label"] for row in planned) == count // 3
    assert len(plan_kto(given, 4, seed=1, keep_all=True)) == count


def test_the_seed_decides() -> None:
    given = rows(13, 8)
    first, again, other = (plan_kto(given, 4, seed) for seed in (1, 1, 2))
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)
    pairs: list[Row] = [{"prompt_ids": [i], "chosen_ids": [i], "rejected_ids": [0]} for i in range(9)]
    assert (
        fingerprint(plan_pairs(pairs, 2, 5)) == fingerprint(plan_pairs(pairs, 2, 5)) != fingerprint(plan_pairs(pairs, 2, 6))
    )
    assert sorted(row["prompt_ids"][0] for row in plan_pairs(pairs, 2, 5)) == list(range(9))


def padding(lengths: list[int], size: int) -> int:
    groups = [lengths[i : i + size] for i in range(0, len(lengths), size)]
    return sum(max(group) * len(group) - sum(group) for group in groups)


def test_batches_hold_similar_lengths() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(10, 500) for _ in range(1000)]
    order = batched_order(lengths, 8, random.Random(1))
    assert sorted(order) == list(range(1000))
    assert padding([lengths[i] for i in order], 8) < padding(lengths, 8) / 10
    assert max(lengths[i] for i in order[:8]) == max(lengths[i] for i in order[: 1000 // 8 * 8])


def test_kto_batches_hold_similar_lengths_of_both_labels() -> None:
    rng = random.Random(0)
    given: list[dict[str, Any]] = [
        {"prompt": f"p{i}", "prompt_ids": [1] * rng.randint(5, 300), "completion_ids": [2], "label": i % 3 > 0}
        for i in range(960)
    ]
    lengths = [len(row["prompt_ids"]) for row in plan_kto(given, 8, seed=1)]
    assert padding(lengths, 8) < padding([len(row["prompt_ids"]) for row in given], 8) / 5


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((50, 50), (1.0, 4 / 3, 3 / 4, 1.0)),
        ((20, 400), (20.0, 80 / 3, 3 / 80, 1 / 20)),
        ((400, 100), (0.25, 1 / 3, 3.0, 4.0)),
    ],
)
def test_suggested_weights(counts: tuple[int, int], expected: tuple[float, ...]) -> None:
    """λ_D · n_D / (λ_U · n_U) at the ends of [1, 4/3], with the other weight at 1."""
    weights = suggested_weights(*counts)
    assert weights is not None
    assert tuple(weights.values()) == pytest.approx(expected)
    assert weights["desirable_weight_min"] * counts[0] / counts[1] == pytest.approx(1)
    assert counts[0] / (weights["undesirable_weight_min"] * counts[1]) == pytest.approx(4 / 3)
    assert suggested_weights(0, 5) is None
