"""The data plan: the order in which rows train, and the KL partner of each KTO row. Seeded, and hashed.

Rows of similar length share a batch, to keep padding low. TRL's KTO trainer reads rows in the given order and estimates its
KL term within a batch, so the order is part of that method: every batch has both labels if the data allow it, neighbours
have different prompts, and no batch has a single row.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise

from trainer_core.row_rules import Row, comparable

# How many batches to match lengths among: enough to match well, few enough that the order stays random.
_WINDOW_BATCHES = 32
# Range of (λ_D · n_D) / (λ_U · n_U): Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8.
_WEIGHT_RATIO = (1.0, 4 / 3)
_PARTNERS_TRIED = 200


def plan_kto(rows: Sequence[Row], batch_size: int, seed: int, *, keep_all: bool = False) -> list[Row]:
    """KTO rows in training order, the same for every epoch, each with `KL_completion_ids` and their row, `KL_row`.

    Both labels are spread evenly over the whole order. If the last batch would have a single row, a row of the more frequent
    label is left out, because the single row would weigh as much as a whole batch. `keep_all` keeps it, for evaluation.
    """
    rng = random.Random(seed)
    groups = [[row for row in rows if row["label"] is label] for label in (True, False)]
    fewer, more = sorted(groups, key=len)
    for group in (fewer, more):
        rng.shuffle(group)
    if len(rows) > 1 and len(rows) % batch_size == 1 and not keep_all:
        more.pop()
    batches = list(_kto_batches(fewer, more, batch_size, rng))
    return _with_partners([_apart(batch) for batch in batches])


def plan_pairs(rows: Sequence[Row], batch_size: int, seed: int) -> list[Row]:
    """Pairs in the order of the first epoch."""
    return [rows[i] for i in batched_order([row_tokens(row) for row in rows], batch_size, random.Random(seed))]


def batched_order(lengths: Sequence[int], batch_size: int, rng: random.Random) -> list[int]:
    """Indices in an order whose batches hold similar lengths.

    The longest row comes in the first batch, so that insufficient memory shows at once. A last batch that is not full holds
    random rows.
    """
    order = list(range(len(lengths)))
    rng.shuffle(order)
    full = len(order) // batch_size * batch_size
    batches: list[list[int]] = []
    for start in range(0, full, batch_size * _WINDOW_BATCHES):
        window = sorted(order[start : min(full, start + batch_size * _WINDOW_BATCHES)], key=lambda i: lengths[i])
        batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    rng.shuffle(batches)
    if batches:
        longest = max(range(len(batches)), key=lambda i: max(lengths[j] for j in batches[i]))
        batches.insert(0, batches.pop(longest))
    return [i for batch in batches for i in batch] + order[full:]


def suggested_weights(desirable: int, undesirable: int) -> dict[str, float] | None:
    """Weights that balance the labels, with the other weight at 1; None if a label has no rows.

    λ_D · n_D / (λ_U · n_U) must lie between 1 and 4/3 (arXiv:2402.01306, eq. 8).
    """
    if not desirable or not undesirable:
        return None
    low, high = _WEIGHT_RATIO
    return {
        "desirable_weight_min": low * undesirable / desirable,
        "desirable_weight_max": high * undesirable / desirable,
        "undesirable_weight_min": desirable / undesirable / high,
        "undesirable_weight_max": desirable / undesirable / low,
    }


def fingerprint(rows: Sequence[Row], mix: Sequence[int] = ()) -> str:
    """SHA-256 (hex) over the token ids and labels of planned rows, in order.

    Args:
        mix: how many rows each of several datasets gives; empty for one file, whose hash it leaves unchanged.
    """
    digest = hashlib.sha256(json.dumps(["mix", *mix]).encode() if mix else b"")
    names = ("prompt_ids", "completion_ids", "KL_completion_ids", "chosen_ids", "rejected_ids", "label")
    for row in rows:
        digest.update(json.dumps([row.get(name) for name in names]).encode())
    return digest.hexdigest()


def row_tokens(row: Row) -> int:
    """Tokens in a row's prompt and its longest answer."""
    answers = [len(row[name]) for name in ("completion_ids", "chosen_ids", "rejected_ids") if name in row]
    return len(row["prompt_ids"]) + max(answers)


def batch_tokens(rows: Sequence[Row], is_packed: bool) -> int:
    """Tokens in a training batch. Packed: shared prompts once, no padding; otherwise each row is as long as the longest."""
    if is_packed:
        names = ("prompt_ids", "completion_ids", "chosen_ids", "rejected_ids")
        return sum(len(row[name]) for row in rows for name in names if name in row)
    copies = 2 if "chosen_ids" in rows[0] else 1
    return copies * len(rows) * max(map(row_tokens, rows))


def _kto_batches(fewer: list[Row], more: list[Row], batch_size: int, rng: random.Random) -> Iterator[list[Row]]:
    """Batches in training order; within a window of batches, rows of similar length go together."""
    quotas = _quotas(len(fewer), len(more), batch_size)
    for first in range(0, len(quotas), _WINDOW_BATCHES):
        window = quotas[first : first + _WINDOW_BATCHES]
        few = sorted((fewer.pop() for _ in range(sum(quota for quota, _ in window))), key=row_tokens)
        many = sorted((more.pop() for _ in range(sum(size - quota for quota, size in window))), key=row_tokens)
        batches: list[list[Row]] = [[] for _ in window]
        # The quotas keep their places; which of them get short rows and which get long ones is drawn.
        for place in rng.sample(range(len(window)), len(window)):
            quota, size = window[place]
            batches[place] = few[:quota] + many[: size - quota]
            del few[:quota], many[: size - quota]
        yield from batches


def _quotas(fewer: int, more: int, batch_size: int) -> list[tuple[int, int]]:
    """(rows of the rarer label, rows) for each batch, spread evenly; both labels in each if there are enough."""
    total = fewer + more
    full, tail = divmod(total, batch_size)
    in_tail = round(tail * fewer / total) if tail else 0
    if tail > 1 and fewer > full:
        in_tail = min(max(in_tail, 1), tail - 1)
    left = fewer - in_tail
    # Start half a step in, so that a rare label comes neither at once nor late.
    marks = [(2 * i * left + full) // (2 * full) for i in range(full + 1)] if full else []
    return [(later - earlier, batch_size) for earlier, later in pairwise(marks)] + ([(in_tail, tail)] if tail else [])


def _apart(batch: list[Row]) -> list[Row]:
    """The rows of a batch, ordered so that neighbours have different prompts as far as possible."""
    counts = Counter(comparable(row["prompt"]) for row in batch)
    together = sorted(batch, key=lambda row: (-counts[comparable(row["prompt"])], comparable(row["prompt"])))
    places = [*range(0, len(batch), 2), *range(1, len(batch), 2)]
    return [row for _, row in sorted(zip(places, together, strict=True), key=lambda item: item[0])]


def _with_partners(batches: list[list[Row]]) -> list[Row]:
    """Gives row i the answer of row i-1 in its batch, and the first row that of the last (TRL's rotation).

    If that row has the same prompt, it uses the nearest earlier row of the batch with another one, or else any such row.
    """
    order = [row for batch in batches for row in batch]
    prompts = [comparable(row["prompt"]) for row in order]
    other = next((i for i, prompt in enumerate(prompts) if prompt != prompts[0]), 0)
    planned: list[Row] = []
    start = 0
    for batch in batches:
        for place in range(len(batch)):
            index = start + place
            inside = (start + (place - step) % len(batch) for step in range(1, len(batch)))
            outside = ((index - step) % len(order) for step in range(1, min(len(order), _PARTNERS_TRIED)))
            mismatched = (i for i in chain(inside, outside, (other, 0)) if prompts[i] != prompts[index])
            # If all rows have the same prompt, no answer is mismatched; another row's comes closest.
            partner = next(mismatched, start + place - 1 if len(batch) > 1 else index - 1)
            answer = order[partner]
            planned.append(
                {**order[index], "KL_completion_ids": answer["completion_ids"], "KL_row": answer.get("row", partner + 1)}
            )
        start += len(batch)
    return planned
