"""The rows of a Parquet file as JSON lines: `python parquet_rows.py FILE MOST_ROW_BYTES MOST_EXPANDED_BYTES`.

A process of its own, with limits on its memory and time: what a Parquet file says of its sizes is not what reading it takes.
Whatever ends the reading is one line on standard error, and exit code 1. Imports nothing of this package, to start fast.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

_MOST_DATA_BYTES = 512 * 2**20
_CPU_S = 60
_BYTES_A_CPU_S = 2**20
# Each is decoded whole, and one value of a dictionary may be in all of them.
_ROWS_A_BATCH = 16
_MOST_COLUMNS = 1000


def main(path: str, most_row_bytes: int, most_expanded_bytes: int) -> None:
    """Writes the rows. Raises what Arrow raises, `MemoryError` at the limit, `ValueError` for what is not worth reading."""
    cpu_s = _CPU_S + Path(path).stat().st_size // _BYTES_A_CPU_S
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_DATA_BYTES, _MOST_DATA_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import pyarrow
    from pyarrow import parquet

    # It gives back what it does not need, and reserves nothing ahead.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    # Page by page: a group of rows may be larger than the memory.
    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**16) as file:
        metadata: Any = file.metadata
        if sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)) > most_expanded_bytes:
            raise ValueError("expands more than 200 times")
        if metadata.num_columns > _MOST_COLUMNS:
            raise ValueError(f"has more than {_MOST_COLUMNS} columns")
        number = 0
        for batch in file.iter_batches(batch_size=_ROWS_A_BATCH, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                # A column is absent from a row when it is null there.
                kept = {name: value for name, value in row.items() if value is not None}
                line = json.dumps(kept, ensure_ascii=False, default=_as_json).encode()
                if len(line) > most_row_bytes:
                    raise ValueError(f"row {number} is longer than {most_row_bytes:,} bytes")
                sys.stdout.buffer.write(line + b"\n")


def _as_json(value: Any) -> Any:
    """Dates as text; anything else, as bytes, as what no field of a row may be."""
    return value.isoformat() if hasattr(value, "isoformat") else {type(value).__name__: str(value)[:100]}


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
        sys.stdout.flush()
    except (MemoryError, OSError, ValueError) as error:
        # Arrow's errors are of these kinds.
        reason = "needs more memory than a file of rows may" if isinstance(error, MemoryError) else str(error)
        sys.exit(reason.splitlines()[0] if reason else type(error).__name__)
