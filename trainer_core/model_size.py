"""How many weights a model on this machine has, from its small files and the headers of its safetensors files. Torch-free.

No weights are read. `weight_headers` compares the same headers with a configuration, for which it needs transformers.
"""

import json
import math
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from trainer_core.estimates import Size

# The safetensors format allows headers of up to 100 MB.
_MOST_HEADER_BYTES = 100_000_000
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


def weights_of(folder: str | Path) -> int | None:
    """The weights of the model in a directory; None if there is none, such as a hub model that is not on this machine.

    The larger of two counts: that of the tensors in its safetensors files, in which packed weights count too few, and that
    of its `config.json`, which does not know the experts of a mixture.
    """
    counts = [count for count in (_of_headers(Path(folder)), _of_config(Path(folder))) if count]
    return max(counts, default=None)


def _of_headers(folder: Path) -> int | None:
    try:
        return sum(map(_values_in, sorted(folder.glob("model*.safetensors")))) or None
    except _UNREADABLE:
        return None


def _values_in(file: Path) -> int:
    """Values in a safetensors file: eight bytes with the header's length, the header as JSON, then the tensors."""
    with file.open("rb") as stored:
        (length,) = struct.unpack("<Q", stored.read(8).ljust(8, b"\0"))
        if length > _MOST_HEADER_BYTES:
            raise ValueError(length)
        header = cast("dict[str, Any]", json.loads(stored.read(length)))
    return sum(math.prod(map(int, tensor["shape"])) for name, tensor in header.items() if name != "__metadata__")


def _of_config(folder: Path) -> int | None:
    with suppress(*_UNREADABLE):
        return Size.of(json.loads((folder / "config.json").read_text(encoding="utf-8"))).weights
    return None
