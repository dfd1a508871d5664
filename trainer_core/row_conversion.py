"""Files of any supported kind and layout, converted to Tafdil's own format. Torch-free."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer_core.errors import DataInvalid, Detail
from trainer_core.reading import MAX_LINE_BYTES, Part
from trainer_core.reading_options import AS_IT_IS, ReadingOptions
from trainer_core.row_errors import sentence
from trainer_core.row_rules import Row
from trainer_core.rows import RowReport, check_file
from trainer_core.wording import say


class RowsTooLarge(Exception):
    """A converted file would be larger than allowed."""


def convert(
    source: Path,
    target: Path,
    options: ReadingOptions = AS_IT_IS,
    most_bytes: int | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> RowReport:
    """Writes the rows of a file in Tafdil's own format: JSONL in which each row keeps its line number or, if the file has a
    `validation` part, a JSON object with both lists.

    Args:
        most_bytes: the largest size of the result. A packed file holds far more than its own size.
        on_bytes: called with the number of bytes of a row before they are written. What it raises ends the conversion.

    Raises like `check_file`, and `RowsTooLarge`; then there is no `target`.
    """
    size_bytes = 0
    parts = {part: target.with_name(f"{target.name}.{part}") for part in ("train", "validation")}
    at = {"train": 1, "validation": 1}
    try:
        with (
            parts["train"].open("w", encoding="utf-8") as train,
            parts["validation"].open("w", encoding="utf-8") as validation,
        ):
            files = {"train": train, "validation": validation}

            def write(part: Part, row: Row, line: int) -> None:
                nonlocal size_bytes
                text = _json_line(row)
                line_bytes = len(text.encode())
                if line_bytes > MAX_LINE_BYTES:
                    detail = Detail("", say("row_too_long", most=MAX_LINE_BYTES), line)
                    raise DataInvalid(sentence(detail), [detail])
                added_bytes = max(0, line - at[part]) + line_bytes + 1
                size_bytes += added_bytes
                if most_bytes is not None and size_bytes > most_bytes:
                    raise RowsTooLarge(f"the rows are larger than {most_bytes:,} bytes")
                on_bytes(added_bytes)
                files[part].write("\n" * max(0, line - at[part]) + text + "\n")
                at[part] = max(at[part], line) + 1

            report = check_file(source, write, options)
        if report.validation_rows:
            _join(parts, target)
        else:
            parts["train"].replace(target)
    finally:
        for path in parts.values():
            path.unlink(missing_ok=True)
    return report


def _json_line(row: Row) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        # Unread columns may contain numbers that are not valid JSON.
        return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _join(parts: dict[str, Path], target: Path) -> None:
    """Joins files of JSON lines into one JSON object."""
    with target.open("w", encoding="utf-8") as file:
        file.write("{")
        for place, (part, path) in enumerate(parts.items()):
            file.write(f'{"," if place else ""}"{part}": [\n')
            with path.open(encoding="utf-8") as lines:
                rows = (line.rstrip("\n") for line in lines if line != "\n")
                file.writelines(f"{',' if number else ''}{row}\n" for number, row in enumerate(rows))
            file.write("]")
        file.write("}\n")
