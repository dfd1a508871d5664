"""Reads the rows of a file of any supported kind.

A reader takes bytes in chunks of any size and passes each row to a `Sink`, in constant memory. It reads text (JSONL, JSON,
CSV) as it arrives, and Parquet, Arrow, workbooks and zips once the whole file is there. A file that holds no rows gets an
error that says what it is. The package does not know what makes a row valid.
"""

from trainer_core.reading.kinds import reader_for
from trainer_core.reading.limits import CHUNK_BYTES, HEAD_BYTES, MAX_LINE_BYTES
from trainer_core.reading.sink import PLAIN_KINDS, Format, Part, Reader, Sink

__all__ = ["CHUNK_BYTES", "HEAD_BYTES", "MAX_LINE_BYTES", "PLAIN_KINDS", "Format", "Part", "Reader", "Sink", "reader_for"]
