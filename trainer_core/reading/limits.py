"""The limits on size, width and depth, shared by every kind of file."""

MAX_LINE_BYTES = 4 * 2**20
"""Bytes per row, in any kind of file."""

MAX_ROW_DEPTH = 100
"""Levels of lists and objects in a row. The code that writes rows as JSON handles about twice as many."""

MAX_COLUMNS = 1000
MAX_ITEMS = 100_000
"""Items of one list in a row, or keys of one object."""

MAX_EXPANSION = 200
"""How many times its size a file may expand to. More than this is an attack on disk or memory; small files are exempt."""

ALWAYS_ALLOWED_BYTES = 64 * 2**20
MAX_WHOLE_FILE_BYTES = 256 * 2**20
"""For a file that cannot be read as a stream: a workbook, a zip, or a table inside another file."""

CHUNK_BYTES = 2**16
HEAD_BYTES = 512
"""Bytes needed to detect the kind of any file that is not text."""


def most_bytes_out(bytes_in: int) -> int:
    """The size to which `bytes_in` bytes may expand."""
    return max(ALWAYS_ALLOWED_BYTES, bytes_in * MAX_EXPANSION)
