"""Prints tables that fit the terminal without cutting anything: text wraps, and ids stay whole.

If a table does not fit, each row becomes a short block instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tafdil.cli.context import console, emit, told
from tafdil.text import visible

_GAP = 2
_INDENT = "  "
# Text in columns narrower than this is hard to read.
_READABLE = 12


@dataclass(frozen=True)
class Column:
    """A column of a listing.

    Attributes:
        name: its header.
        is_whole: its text never wraps, because people copy it.
        is_number: it is aligned to the right.
    """

    name: str
    is_whole: bool = False
    is_number: bool = False


class _Cell:
    """User text that wraps. Every line is isolated from the text around it."""

    def __init__(self, text: str) -> None:
        self._text = Text(visible(text))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._text.wrap(console, options.max_width, overflow="fold"):
            line.rstrip()
            yield Text(told(line.plain), justify=options.justify, no_wrap=True)


def show_listing(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], styles: Sequence[str | None] | None = None
) -> None:
    """Prints rows as a table or, on a narrow terminal, as blocks that begin with a whole cell."""
    styles = styles or [None] * len(rows)
    widest = [
        max(cell_len(visible(text)) for text in (column.name, *(row[i] for row in rows))) for i, column in enumerate(columns)
    ]
    least = [size if column.is_whole else min(size, _READABLE) for column, size in zip(columns, widest, strict=True)]
    if sum(least) + _GAP * (len(columns) - 1) > console.width:
        _show_blocks(columns, rows, styles)
        return
    table = Table(box=None, pad_edge=False)
    for column, size in zip(columns, widest, strict=True):
        justify = "right" if column.is_number else "left"
        table.add_column(
            column.name,
            justify=justify,
            no_wrap=column.is_whole,
            min_width=size if column.is_whole else None,
            overflow="fold",
        )
    for row, style in zip(rows, styles, strict=True):
        table.add_row(*map(_Cell, row), style=style)
    console.print(table)


def _show_blocks(columns: Sequence[Column], rows: Sequence[Sequence[str]], styles: Sequence[str | None]) -> None:
    for row, style in zip(rows, styles, strict=True):
        cells = list(zip(columns, row, strict=True))
        emit(next(told(text) for column, text in cells if column.is_whole), style)
        others = [f"{column.name} {told(text)}" for column, text in cells if text and not column.is_whole]
        for line in _lines(others, console.width - len(_INDENT)):
            emit(_INDENT + line, style)


def _lines(items: Sequence[str], width: int) -> list[str]:
    """Fills lines with items. An item that is longer than a line gets its own."""
    lines: list[str] = []
    for item in items:
        joined = f"{lines[-1]}, {item}" if lines else item
        if lines and cell_len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(item)
    return lines
