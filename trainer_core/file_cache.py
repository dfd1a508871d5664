"""Results that can be computed again, in files by the hash of all that decides them."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_NAME = re.compile("[0-9a-f]{64}")
_HASH_BYTES = 32


class FileCache:
    """A directory of results. Whoever cannot read or write it computes: a cache costs time at worst, never a training.

    Args:
        folder: made on the first write. Files of other kinds in it are left alone.
        limit_bytes: what the results may take together; those that were used longest ago go first.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit_bytes = folder, limit_bytes

    def read(self, identity: Mapping[str, Any]) -> bytes | None:
        """What was written for an identity; None when there is nothing, or it is not as it was written."""
        path = self._path(identity)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        digest, result = content[:_HASH_BYTES], content[_HASH_BYTES:]
        return result if hashlib.sha256(result).digest() == digest else None

    def write(self, identity: Mapping[str, Any], result: bytes) -> None:
        """Keeps a result, unless it alone is over the limit.

        Args:
            identity: all that decides the result, in JSON's types.
        """
        path = self._path(identity)
        staged = path.with_suffix(f".{os.getpid()}")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._make_room(_HASH_BYTES + len(result)):
                staged.write_bytes(hashlib.sha256(result).digest() + result)
                staged.replace(path)
        except OSError:
            with suppress(OSError):
                staged.unlink()

    def _make_room(self, size: int) -> bool:
        kept: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            # Other processes clear up here as well.
            with suppress(FileNotFoundError):
                # What a killed process left behind has a suffix, and is never read.
                if _NAME.fullmatch(path.stem):
                    status = path.stat()
                    kept.append((status.st_mtime, status.st_size, path))
        taken = sum(file_size for _, file_size, _ in kept)
        for _, file_size, path in sorted(kept):
            if taken + size <= self._limit_bytes:
                break
            path.unlink(missing_ok=True)
            taken -= file_size
        return taken + size <= self._limit_bytes

    def _path(self, identity: Mapping[str, Any]) -> Path:
        return self._folder / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
