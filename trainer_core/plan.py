"""The data plan: the order in which rows train, and the KL partner of each KTO row. Seeded, and hashed.

TRL's KTO trainer reads rows in the order given and estimates the KL term from mismatched pairs inside a batch, so order
is part of the method: every batch should hold both labels, and a row's partner must answer another prompt.
"""

import hashlib
import json
import random
from collections.abc import Sequence

from trainer_core.rows import Row


def plan_kto(rows: Sequence[Row], batch_size: int, seed: int) -> list[Row]:
    """KTO rows in training order, each with `KL_completion_ids` (another prompt's answer, where there is one).

    Labels are spread evenly over the whole order, so each batch has both whenever the data allow it. Within a batch, row
    i takes the answer of row i-1 and the first that of the last (TRL's rotation); a last batch of one row takes its
    partner from the batch before.
    """
    order = _spread_labels(rows, random.Random(seed))
    _part_neighbours(order)
    planned: list[Row] = []
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for offset, row in enumerate(batch):
            partner = batch[offset - 1]
            if partner["prompt"] == row["prompt"]:
                partner = _other_prompt(order, start + offset)
            planned.append({**row, "KL_completion_ids": partner["completion_ids"]})
    return planned


def plan_pairs(rows: Sequence[Row], seed: int) -> list[Row]:
    """Pairs in a seeded order; the trainer draws a new seeded order every epoch."""
    order = list(rows)
    random.Random(seed).shuffle(order)
    return order


def fingerprint(rows: Sequence[Row]) -> str:
    """SHA-256 (hex) over the token ids and labels of planned rows, in order."""
    digest = hashlib.sha256()
    names = ("prompt_ids", "completion_ids", "KL_completion_ids", "chosen_ids", "rejected_ids", "label")
    for row in rows:
        digest.update(json.dumps([row.get(name) for name in names]).encode())
    return digest.hexdigest()


def _spread_labels(rows: Sequence[Row], rng: random.Random) -> list[Row]:
    placed: list[tuple[float, Row]] = []
    for label in (True, False):
        group = [row for row in rows if row["label"] is label]
        rng.shuffle(group)
        placed += [((i + 0.5) / len(group), row) for i, row in enumerate(group)]
    return [row for _, row in sorted(placed, key=lambda item: item[0])]


def _part_neighbours(order: list[Row]) -> None:
    """Swaps rows of one label until neighbours have different prompts, as far as a short search finds a place."""
    for i in range(1, len(order)):
        if order[i]["prompt"] != order[i - 1]["prompt"]:
            continue
        for j in range(i + 1, min(i + 200, len(order))):
            if order[j]["label"] is order[i]["label"] and order[j]["prompt"] != order[i - 1]["prompt"]:
                order[i], order[j] = order[j], order[i]
                break


def _other_prompt(order: list[Row], index: int) -> Row:
    """The nearest earlier row (wrapping around) with another prompt; the row itself when there is none."""
    for step in range(1, len(order)):
        if order[index - step]["prompt"] != order[index]["prompt"]:
            return order[index - step]
    return order[index]
