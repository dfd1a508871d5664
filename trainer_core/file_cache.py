"""Results that can be recomputed, in files named after the hash of everything that decides them."""

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
    """A directory of results. If it cannot be read or written, the caller computes: a broken cache never fails a run.

    Args:
        folder: created on the first write. Other files in it are left alone.
        limit_bytes: total size of the results; the least recently used are removed first.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit_bytes = folder, limit_bytes

    def read(self, identity: Mapping[str, Any]) -> bytes | None:
        """The result stored for an identity; None if there is none, or if it is corrupt."""
        path = self._path(identity)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        digest, result = content[:_HASH_BYTES], content[_HASH_BYTES:]
        return result if hashlib.sha256(result).digest() == digest else None

    def write(self, identity: Mapping[str, Any], result: bytes) -> None:
        """Stores a result, unless it alone exceeds the limit.

        Args:
            identity: everything that decides the result, in JSON's types.
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
            # Other processes also remove files here.
            with suppress(FileNotFoundError):
                # Files left by a killed process have a suffix, and are never read.
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
