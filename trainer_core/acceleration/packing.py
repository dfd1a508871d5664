"""Padded rows as one row without padding, in which a common beginning of two rows is there once."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

Span = tuple[int, int]
"""Begin and end of consecutive tokens in a packed row."""


@dataclass
class Segment:
    """Consecutive tokens that attend to what comes before them in their row (`before`), and causally to each other.

    `mask`, (tokens, before + tokens) bool, is made when an attention layer first asks for it.
    """

    span: Span
    before: tuple[Span, ...]
    _mask: Tensor | None = None

    @property
    def tokens(self) -> int:
        return self.span[1] - self.span[0]

    def mask(self, device: torch.device) -> Tensor:
        if self._mask is None:
            seen = sum(end - start for start, end in self.before)
            ones = torch.ones(self.tokens, seen + self.tokens, dtype=torch.bool, device=device)
            self._mask = ones.tril(seen)
        return self._mask


@dataclass
class Packed:
    """A batch as one row of T tokens.

    Attributes:
        ids, positions: (1, T).
        segments: in order, without gaps.
        places: (rows, width) of the padded batch: where a token's hidden state is. Of padding, 0.
        behind: the packed batch whose keys and values the `before` of the segments name; None: this one's own.
        kept: by layer, keys and values for batches behind this one, while they are wanted.
    """

    ids: Tensor
    positions: Tensor
    segments: list[Segment]
    places: Tensor
    behind: "Packed | None" = None
    kept: dict[int, tuple[Tensor, Tensor]] | None = None
    spans: list[tuple[Span, ...]] = field(default_factory=list)
    """Of each row, its tokens in order."""

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
    return packing.packed(input_ids, columns)


def pack_behind(
    input_ids: Tensor, attention_mask: Tensor, earlier: Packed, earlier_ids: Tensor, earlier_mask: Tensor
) -> Packed:
    """Packs rows whose beginning, as far as it is row i's of an earlier batch, is not computed again.

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
    packed = packing.packed(input_ids, columns)
    packed.behind = earlier
    return packed


class _Packing:
    def __init__(self, rows: int) -> None:
        self.spans: list[tuple[Span, ...]] = [()] * rows
        self._ids: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._segments: list[Segment] = []
        self._end = 0

    def add(self, ids: Tensor, first_position: int, before: tuple[Span, ...]) -> tuple[Span, ...]:
        """Appends tokens as a segment; none, when there are none."""
        if not len(ids):
            return ()
        span = (self._end, self._end + len(ids))
        self._end = span[1]
        self._ids.append(ids)
        self._positions.append(torch.arange(first_position, first_position + len(ids)))
        self._segments.append(Segment(span, before))
        return (span,)

    def packed(self, input_ids: Tensor, columns: list[Tensor]) -> Packed:
        places = torch.zeros(input_ids.shape, dtype=torch.long)
        for row, spans in enumerate(self.spans):
            if spans:
                places[row, columns[row]] = torch.cat([torch.arange(start, end) for start, end in spans])
        empty = torch.zeros(0, dtype=torch.long)
        ids, positions = (torch.cat(parts or [empty])[None] for parts in (self._ids, self._positions))
        device = input_ids.device
        return Packed(ids.to(device), positions.to(device), self._segments, places.to(device), spans=self.spans)


def _unpadded(input_ids: Tensor, attention_mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The tokens of each row, and their columns; on the CPU."""
    ids, mask = input_ids.cpu(), attention_mask.cpu().bool()
    columns = [row.nonzero()[:, 0] for row in mask]
    return [row[own] for row, own in zip(ids, columns, strict=True)], columns


def _common(a: Tensor, b: Tensor) -> int:
    """How many tokens two rows begin with alike."""
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
