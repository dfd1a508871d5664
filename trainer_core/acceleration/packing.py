"""Packs padded rows into one row without padding, in which a beginning common to two rows occurs once."""

from dataclasses import dataclass

import torch
from torch import Tensor

Span = tuple[int, int]
"""Begin and end of consecutive tokens in a packed row."""


@dataclass
class Segment:
    """Consecutive tokens that attend to all earlier tokens of their row (`before`), and causally to each other."""

    span: Span
    before: tuple[Span, ...]


@dataclass
class Plan:
    """Which tokens attend to which in a packed row, as index tensors that all layers share.

    Each segment's keys lie side by side: first those before it, then its own. So its last query sees all of them, the query
    before sees all but one, and so on.

    Attributes:
        queries, keys: (segments + 1,) int32, where each segment's queries and keys begin; the last entry is their number.
        gather: (K,) int64, the token of each key. Tokens of an earlier batch count first.
        uses: (T, most uses) int64, the keys made from each token, padded with K. None if the keys come from two batches: no
            gradient flows there.
        pieces: each segment's span of queries and span of keys.
        longest: the largest number of queries and of keys in a segment.
    """

    queries: Tensor
    keys: Tensor
    gather: Tensor
    uses: Tensor | None
    pieces: list[tuple[Span, Span]]
    longest: tuple[int, int]


@dataclass
class Packed:
    """A batch as one row of T tokens.

    Attributes:
        ids, positions: (1, T).
        plan: what each token attends to.
        places: (rows, width) of the padded batch: the position of each token's hidden state; 0 for padding.
        behind: the packed batch whose keys and values precede this one's in the plan; None if there is no other.
        kept: keys and values by layer for batches behind this one, as long as they are needed.
        spans: the tokens of each row, in order.
    """

    ids: Tensor
    positions: Tensor
    plan: Plan
    places: Tensor
    spans: list[tuple[Span, ...]]
    behind: "Packed | None" = None
    kept: dict[int, tuple[Tensor, Tensor]] | None = None

    @property
    def tokens(self) -> int:
        return self.ids.shape[1]


def pack(input_ids: Tensor, attention_mask: Tensor) -> Packed:
    """Packs rows padded on either side. Rows i and i + rows/2, a pair's answers in TRL's order, share their beginning."""
    rows, columns = _unpadded(input_ids, attention_mask)
    half = len(rows) // 2 if len(rows) % 2 == 0 else 0
    packing = _Packing(len(rows))
    for i in range(half or len(rows)):
        partners = (i, i + half) if half else (i,)
        shared = _common(rows[i], rows[partners[-1]]) if half else 0
        beginning = packing.add(rows[i][:shared], 0, ())
        for j in partners:
            own = packing.add(rows[j][shared:], shared, beginning)
            packing.spans[j] = (*beginning, *own)
    return packing.packed(input_ids.device, input_ids.shape, columns)


def pack_behind(
    input_ids: Tensor, attention_mask: Tensor, earlier: Packed, earlier_ids: Tensor, earlier_mask: Tensor
) -> Packed:
    """Packs rows without the beginning that row i shares with row i of an earlier batch, which is already computed.

    `places` count the earlier batch's tokens first.
    """
    rows, columns = _unpadded(input_ids, attention_mask)
    before_rows, _ = _unpadded(earlier_ids, earlier_mask)
    packing = _Packing(len(rows))
    for i, (row, known) in enumerate(zip(rows, before_rows, strict=True)):
        shared = _common(row, known)
        beginning = _first(earlier.spans[i], shared)
        own = packing.add(row[shared:], shared, beginning)
        moved = tuple((start + earlier.tokens, end + earlier.tokens) for start, end in own)
        packing.spans[i] = (*beginning, *moved)
    return packing.packed(input_ids.device, input_ids.shape, columns, earlier)


class _Packing:
    def __init__(self, rows: int) -> None:
        self.spans: list[tuple[Span, ...]] = [()] * rows
        self._ids: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._segments: list[Segment] = []
        self._end = 0

    def add(self, ids: Tensor, first_position: int, before: tuple[Span, ...]) -> tuple[Span, ...]:
        """Appends tokens as a segment, or nothing if there are none."""
        if not len(ids):
            return ()
        span = (self._end, self._end + len(ids))
        self._end = span[1]
        self._ids.append(ids)
        self._positions.append(torch.arange(first_position, first_position + len(ids)))
        self._segments.append(Segment(span, before))
        return (span,)

    def packed(self, device: torch.device, shape: torch.Size, columns: list[Tensor], behind: Packed | None = None) -> Packed:
        places = torch.zeros(shape, dtype=torch.long)
        for row, spans in enumerate(self.spans):
            if spans:
                places[row, columns[row]] = torch.cat([torch.arange(start, end) for start, end in spans])
        empty = torch.zeros(0, dtype=torch.long)
        ids, positions = (torch.cat(parts or [empty])[None] for parts in (self._ids, self._positions))
        plan = _plan(self._segments, device, behind.tokens if behind else None)
        return Packed(ids.to(device), positions.to(device), plan, places.to(device), self.spans, behind)


def _plan(segments: list[Segment], device: torch.device, earlier: int | None) -> Plan:
    """The plan of segments.

    Args:
        earlier: number of tokens in the batch that the segments' `before` refers to; None if it refers to this batch.
    """
    pieces: list[tuple[Span, Span]] = []
    gathered: list[Tensor] = [torch.zeros(0, dtype=torch.long)]
    end = 0
    for segment in segments:
        own = tuple(place + (earlier or 0) for place in segment.span)
        spans = (*segment.before, own)
        gathered += [torch.arange(first, last) for first, last in spans]
        count = sum(last - first for first, last in spans)
        pieces.append((segment.span, (end, end + count)))
        end += count
    gather = torch.cat(gathered)
    queries, keys = (torch.tensor([0, *(piece[i][1] for piece in pieces)], dtype=torch.int32, device=device) for i in (0, 1))
    uses = _uses(gather).to(device) if earlier is None else None
    longest_query, longest_key = (max((piece[i][1] - piece[i][0] for piece in pieces), default=0) for i in (0, 1))
    return Plan(queries, keys, gather.to(device), uses, pieces, (longest_query, longest_key))


def _uses(gather: Tensor) -> Tensor:
    """The entries of `gather` that refer to each token: (tokens, most uses), padded with the number of entries."""
    if not len(gather):
        return gather[:, None]
    tokens, order = gather.sort(stable=True)
    counts = tokens.bincount()
    first = counts.cumsum(0) - counts
    uses = torch.full((len(counts), int(counts.max())), len(gather))
    uses[tokens, torch.arange(len(gather)) - first[tokens]] = order
    return uses


def _unpadded(input_ids: Tensor, attention_mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The tokens of each row, and their columns; on the CPU."""
    ids, mask = input_ids.cpu(), attention_mask.cpu().bool()
    columns = [row.nonzero()[:, 0] for row in mask]
    return [row[own] for row, own in zip(ids, columns, strict=True)], columns


def _common(a: Tensor, b: Tensor) -> int:
    """The number of tokens at the beginning that two rows have in common."""
    length = min(len(a), len(b))
    differs = (a[:length] != b[:length]).nonzero()
    return int(differs[0, 0]) if len(differs) else length


def _first(spans: tuple[Span, ...], tokens: int) -> tuple[Span, ...]:
    """The spans of a row's first tokens."""
    found: list[Span] = []
    for start, end in spans:
        if tokens <= 0:
            break
        found.append((start, min(end, start + tokens)))
        tokens -= end - start
    return tuple(found)
