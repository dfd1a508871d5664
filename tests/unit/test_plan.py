"""The KTO order and its KL partners."""

import random
from itertools import pairwise

import pytest

from trainer_core.plan import fingerprint, plan_kto, plan_pairs
from trainer_core.rows import Row


def rows(desirable: int, undesirable: int, prompts: int | None = None) -> list[Row]:
    """Rows sorted by label, the worst order a file can have."""
    labels = [True] * desirable + [False] * undesirable
    return [
        {"prompt": f"p{i % (prompts or len(labels))}", "prompt_ids": [i], "completion_ids": [i, 0], "label": label}
        for i, label in enumerate(labels)
    ]


@pytest.mark.parametrize(("desirable", "undesirable"), [(40, 40), (41, 40), (60, 20)])
def test_every_batch_has_both_labels(desirable: int, undesirable: int) -> None:
    planned = plan_kto(rows(desirable, undesirable), batch_size=4, seed=1)
    full = len(planned) // 4 * 4
    assert all({row["label"] for row in planned[i : i + 4]} == {True, False} for i in range(0, full, 4))


def test_a_rare_label_is_spread_over_the_whole_order() -> None:
    planned = plan_kto(rows(100, 5), batch_size=4, seed=1)
    places = [i for i, row in enumerate(planned) if not row["label"]]
    assert all(15 <= later - earlier <= 27 for earlier, later in pairwise(places))


@pytest.mark.parametrize("count", [16, 17, 19])
def test_a_kl_partner_answers_another_prompt(count: int) -> None:
    """Also in a last batch of one row, which TRL pairs with itself."""
    for row in plan_kto(rows(count // 2, count - count // 2, prompts=count // 2 + 1), batch_size=4, seed=3):
        assert row["KL_completion_ids"] != row["completion_ids"]


def test_one_prompt_alone_still_plans() -> None:
    assert len(plan_kto(rows(3, 3, prompts=1), batch_size=2, seed=0)) == 6


def test_nothing_is_lost_and_the_seed_decides() -> None:
    given = rows(13, 8)
    first, again, other = (plan_kto(given, 4, seed) for seed in (1, 1, 2))
    assert sorted(row["prompt_ids"][0] for row in first) == list(range(21))
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)


def test_the_order_of_pairs_is_seeded() -> None:
    given: list[Row] = [{"prompt_ids": [i], "chosen_ids": [i], "rejected_ids": [0]} for i in range(9)]
    random.shuffle(given)
    assert fingerprint(plan_pairs(given, 5)) == fingerprint(plan_pairs(given, 5)) != fingerprint(plan_pairs(given, 6))
