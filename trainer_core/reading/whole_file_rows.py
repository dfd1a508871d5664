"""Prints the rows of a file on standard input: `whole_file_rows.py KIND MOST_ROW_BYTES MOST_EXPANDED_BYTES SHEET`.

It runs as its own process with limits on memory and time, because the sizes in a file's metadata cannot be trusted. The
first line of output is `{"kind": …}`. Every other line is the row's number, a space and its JSON; for a zip with one
table, the table's bytes follow instead. An error is one line on standard error: a library's message with exit code 1, or
with 2 the code and the values of a sentence in the catalogues, as JSON. It imports nothing from this package, to start fast.
"""

import datetime
import gc
import json
import math
import mmap
import os
import resource
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

_MOST_DATA_BYTES = 512 * 2**20
_CPU_S = 60
_BYTES_A_CPU_S = 2**20
# A batch is decoded at once, and all its rows may share one large dictionary value.
_ROWS_A_BATCH = 16
_MOST_COLUMNS = 1000
_MOST_DEPTH = 100
_MOST_FILES = 10_000
_SHOWN_ROWS = 3
_SHOWN_NAMES = 20
_PIECE_BYTES = 2**16


class Refused(Exception):
    """An error of this program's own, as JSON."""


def refuse(code: str, params: dict[str, Any] | None = None, **more: Any) -> NoReturn:
    raise Refused(json.dumps({"code": code, "params": params or {}, **more}))


def refuse_broken(code: str, **params: Any) -> NoReturn:
    """Refuses a file that is not valid, with a sentence of our own about it."""
    refuse("not_valid", {"problem": {"code": code, "params": params}})


def main(kind: str, most_row_bytes: int, most_expanded_bytes: int, sheet: str) -> None:
    """Writes the rows. Raises `Refused`, `MemoryError` at the limit, and whatever the libraries raise."""
    cpu_s = _CPU_S + os.fstat(0).st_size // _BYTES_A_CPU_S
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_DATA_BYTES, _MOST_DATA_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Rows have no cycles, and looking for them takes most of the time in a document with millions of values.
    gc.disable()
    if kind == "zip":
        kind = of_zip(most_expanded_bytes)
        if kind == "zip":
            return
    if kind == "parquet":
        rows = of_parquet(most_expanded_bytes)
    elif kind in {"arrow", "arrow_stream"}:
        rows = of_arrow(kind)
    elif kind == "json_columns":
        rows = of_json_columns()
    else:
        if kind == "xls":
            check_old_office()
        rows = of_workbook(sheet)
    tell(kind)
    for number, row in rows:
        line = json.dumps(row, ensure_ascii=False, default=as_json).encode("utf-8", "backslashreplace")
        if len(line) > most_row_bytes:
            refuse("row_too_long", {"most": most_row_bytes}, line=number)
        sys.stdout.buffer.write(b"%d %s\n" % (number, line))


def tell(kind: str) -> None:
    sys.stdout.buffer.write(json.dumps({"kind": kind}).encode() + b"\n")
    # The kind is known however the process ends.
    sys.stdout.buffer.flush()


def source() -> Any:
    """The file from its beginning."""
    os.lseek(0, 0, os.SEEK_SET)
    return open(0, "rb", closefd=False)


# -- columns on disk


def arrow() -> Any:
    import pyarrow

    # This pool returns memory that it does not need, and reserves none in advance.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    return pyarrow


def of_parquet(most_expanded_bytes: int) -> Iterator[tuple[int, Any]]:
    arrow()
    from pyarrow import parquet

    # Page by page: a row group may not fit in memory.
    with parquet.ParquetFile(source(), pre_buffer=False, buffer_size=2**16) as file:
        metadata: Any = file.metadata
        if sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)) > most_expanded_bytes:
            refuse("expands", {"most": 200})
        check_columns(metadata.num_columns, file.schema_arrow.names)
        yield from rows_of(file.iter_batches(batch_size=_ROWS_A_BATCH, use_threads=False))


def of_arrow(kind: str) -> Iterator[tuple[int, Any]]:
    from_file = kind == "arrow"
    pyarrow = arrow()
    # Mapped, so that uncompressed data takes no memory.
    with pyarrow.memory_map("/dev/stdin") as mapped:
        reader: Any = pyarrow.ipc.open_file(mapped) if from_file else pyarrow.ipc.open_stream(mapped)
        check_columns(len(reader.schema.names), reader.schema.names)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if from_file else reader
        yield from rows_of(slices(batches))


def slices(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        batch.validate(full=True)
        for start in range(0, batch.num_rows, _ROWS_A_BATCH):
            yield batch.slice(start, _ROWS_A_BATCH)


def check_columns(count: int, names: list[str]) -> None:
    if count > _MOST_COLUMNS:
        refuse("too_many_columns", {"most": _MOST_COLUMNS})
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        refuse("duplicate_column", {"column": twice})


def rows_of(batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            # A null cell is a missing field; numeric columns use NaN for null.
            yield number, {name: value for name, value in row.items() if not is_null(value)}


def is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_json(value: Any) -> Any:
    """A date as text. Anything else, such as bytes, becomes an object, which no field accepts."""
    return value.isoformat() if hasattr(value, "isoformat") else {type(value).__name__: str(value)[:100]}


def of_json_columns() -> Iterator[tuple[int, Any]]:
    """The output of pandas' `to_json()`: columns of values by row index, or rows by index."""
    twice: list[str] = []

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice.append(next(key for key, _ in pairs if key in seen or seen.add(key)))
        return found

    with source() as file:
        try:
            columns = json.loads(file.read().decode("utf-8-sig"), object_pairs_hook=checked)
        except UnicodeDecodeError:
            refuse("not_utf8")
        except RecursionError:
            refuse("too_deep", {"most": _MOST_DEPTH})
    if twice:
        refuse("duplicate_key", {"key": twice[0].encode("utf-8", "backslashreplace").decode()})
    if not all(isinstance(column, dict) for column in columns.values()):
        refuse("not_columns")
    if all(name.isdecimal() for name in columns):
        yield from enumerate(columns.values(), start=1)
        return
    if len(columns) > _MOST_COLUMNS:
        refuse("too_many_columns", {"most": _MOST_COLUMNS})
    places = next(iter(columns.values())).keys()
    if any(column.keys() != places for column in columns.values()):
        refuse("not_columns")
    for number, place in enumerate(places, start=1):
        yield number, {name: column[place] for name, column in columns.items()}


# -- workbooks


def of_workbook(sheet: str) -> Iterator[tuple[int, Any]]:
    try:
        import python_calamine as calamine
    except ImportError:
        refuse("not_installed", {"package": "python-calamine"})
    try:
        book = calamine.load_workbook(source())
        yield from of_sheets(book, sheet)
    except calamine.PasswordError:
        refuse("password")
    except (calamine.CalamineError, calamine.ZipError, calamine.XmlError) as error:
        # The kind is known here: what calamine did not detect is a file that it cannot read.
        if "detect file format" in str(error):
            refuse_broken("problem.damaged")
        raise ValueError(str(error)) from None


def check_old_office() -> None:
    """Refuses other files in the container format of old workbooks, by the names inside."""
    with source() as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find("EncryptedPackage".encode("utf-16-le")) >= 0:
            refuse("password")
        if data.find("WordDocument".encode("utf-16-le")) >= 0:
            refuse("not_rows", {"kind": "doc"})
        if data.find("PowerPoint Document".encode("utf-16-le")) >= 0:
            refuse("not_rows", {"kind": "ppt"})


def of_sheets(book: Any, sheet: str) -> Iterator[tuple[int, Any]]:
    names: list[str] = book.sheet_names
    if sheet and sheet not in names:
        refuse("unknown_sheet", {"sheet": sheet, "sheets": names[:_SHOWN_NAMES]})
    if not sheet:
        hidden = {one.name for one in book.sheets_metadata if not str(one.visible).endswith("Visible") or is_chart(one)}
        full = [name for name in names if name not in hidden and has_rows(book, name)]
        if len(full) > 1:
            first = [row for _, (_, row) in zip(range(_SHOWN_ROWS), rows_of_sheet(book, full[0]), strict=False)]
            shown = json.loads(json.dumps(first, default=as_json))
            refuse("sheet_unclear", {"sheets": full[:_SHOWN_NAMES]}, rows=shown)
        if not full:
            refuse("empty_workbook")
        sheet = full[0]
    yield from rows_of_sheet(book, sheet)


def is_chart(sheet: Any) -> bool:
    return not str(sheet.typ).endswith("WorkSheet")


def has_rows(book: Any, name: str) -> bool:
    return next(rows_of_sheet(book, name), None) is not None


def rows_of_sheet(book: Any, name: str) -> Iterator[tuple[int, Any]]:
    """The rows below the header, which is the first row that is not empty. Empty cells are missing values."""
    sheet = book.get_sheet_by_name(name)
    columns: list[str] | None = None
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        values = [cell_value(cell) for cell in cells]
        if all(value is None for value in values):
            continue
        if columns is None:
            columns = columns_of(values)
            continue
        # Cells beyond the last named column, such as notes, are columns named by position.
        yield number, {column: value for column, value in zip(columns, values, strict=False) if value is not None}


def columns_of(cells: list[Any]) -> list[str]:
    if len(cells) > _MOST_COLUMNS:
        refuse("too_many_columns", {"most": _MOST_COLUMNS})
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    names = [name or f"column {place}" for place, name in enumerate(names, start=1)]
    check_columns(len(names), names)
    return names


def cell_value(cell: Any) -> Any:
    """Text, a number or a boolean. Workbooks store whole numbers as floats; dates become text."""
    if cell is None or cell == "":
        return None
    if isinstance(cell, float):
        return int(cell) if cell.is_integer() else cell
    if isinstance(cell, (datetime.date, datetime.time)):
        return cell.isoformat()
    return str(cell) if isinstance(cell, datetime.timedelta) else cell


# -- zips


def of_zip(most_expanded_bytes: int) -> str:
    """The kind of a zip: a workbook, which is still to be read, or a zip, whose one table has been written."""
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(source()) as file:
            infos = file.infolist()
            office = kind_of_office({info.filename for info in infos}, file)
            if sum(info.file_size for info in infos) > most_expanded_bytes:
                refuse("expands", {"most": 200})
            if office:
                return office
            info = only_table(infos)
            tell("zip")
            with file.open(info) as table:
                while data := table.read(_PIECE_BYTES):
                    sys.stdout.buffer.write(data)
    except zipfile.BadZipFile as error:
        refuse_broken("problem.truncated", problem=str(error))
    except (NotImplementedError, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from None
    return "zip"


def kind_of_office(names: set[str], file: Any) -> str | None:
    # Some programs write the separators of Windows.
    plain = {name.replace("\\", "/") for name in names}
    if "xl/workbook.bin" in plain:
        return "xlsb"
    is_book = has(file, names, "[Content_Types].xml", b"spreadsheetml.sheet.main+xml")
    if is_book or any(name.startswith("xl/workbook") for name in plain):
        return "xlsx"
    if has(file, names, "META-INF/manifest.xml", b"encryption-data"):
        refuse("password")
    if "mimetype" in names and "content.xml" in names:
        with file.open("mimetype") as about:
            kind = about.read(200).decode("ascii", "replace")
        if "spreadsheet" in kind:
            return "ods"
        refuse("not_rows", {"kind": "odf"})
    for folder, kind in (("word/", "docx"), ("ppt/", "pptx")):
        if any(name.startswith(folder) for name in names) and "[Content_Types].xml" in names:
            refuse("not_rows", {"kind": kind})
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        refuse("not_rows", {"kind": "pickle"})
    if names and all(name.endswith(".npy") for name in names):
        refuse("not_rows", {"kind": "numpy"})
    return None


def has(file: Any, names: set[str], name: str, word: bytes) -> bool:
    """Whether a zip has a file with a word near its beginning."""
    if name not in names:
        return False
    with file.open(name) as found:
        return word in found.read(_PIECE_BYTES)


def only_table(infos: list[Any]) -> Any:
    if len(infos) > _MOST_FILES:
        refuse("several_files", {"files": shown_names(infos)})
    # macOS adds metadata files that the sender does not know of.
    files = [info for info in infos if not info.is_dir() and not is_hidden(info.filename)]
    if not files:
        refuse("empty_zip")
    if len(files) > 1:
        refuse("several_files", {"files": shown_names(files)})
    if files[0].flag_bits & 1:
        refuse("password")
    return files[0]


def shown_names(infos: list[Any]) -> list[str]:
    return [info.filename[:100] for info in infos[:_SHOWN_NAMES]]


def is_hidden(name: str) -> bool:
    return name.startswith("__MACOSX/") or name.rsplit("/", 1)[-1].startswith(".")


if __name__ == "__main__":
    try:
        try:
            main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
            sys.stdout.flush()
        except MemoryError:
            # Arrow raises this too.
            refuse_broken("problem.memory")
    except Refused as error:
        sys.stderr.write(str(error))
        sys.exit(2)
    except (OSError, ValueError) as error:
        # Arrow raises these types too.
        sys.exit(str(error).splitlines()[0] if str(error) else type(error).__name__)
