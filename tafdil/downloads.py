"""Downloads of jobs' files: interrupted ones resume, and hashes are checked."""

import hashlib
from pathlib import Path

from tafdil.errors import DamagedDownload
from tafdil.models import Artifact


class Download:
    """One file. Bytes go to `<name>.<hash>.part`, which becomes `<name>` once its hash matches the service's."""

    def __init__(self, file: Artifact, folder: Path) -> None:
        self._file = file
        self.target = folder / local_name(file)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._part = self.target.with_name(f"{self.target.name}.{file.sha256[:16]}.part")
        self._done = self._part.stat().st_size if self._part.exists() else 0

    @property
    def is_needed(self) -> bool:
        """Whether bytes are missing."""
        return self._done != self._file.size_bytes

    def headers(self) -> dict[str, str]:
        """Headers of the request for the missing bytes."""
        if not 0 < self._done < self._file.size_bytes:
            return {}
        return {"Range": f"bytes={self._done}-", "If-Range": f'"{self._file.sha256}"'}

    def begin(self, status: int) -> None:
        """Call with the reply's status. Unless the reply continues where the part ends, the download starts over."""
        if status != 206:
            self._part.write_bytes(b"")

    def write(self, data: bytes) -> None:
        with self._part.open("ab") as file:
            file.write(data)

    def finish(self) -> Path:
        """Gives the file its name. Raises `DamagedDownload`, after which the next try starts over."""
        if not self._part.exists():
            self._part.touch()
        with self._part.open("rb") as found:
            is_right = hashlib.file_digest(found, "sha256").hexdigest() == self._file.sha256
        if not is_right:
            self._part.unlink()
            raise DamagedDownload(f"{self._file.name} is not what the service says it is; download it again")
        self._part.replace(self.target)
        return self.target


def local_name(file: Artifact) -> str:
    """The local path of a file: relative to the model for files of a model or checkpoint, to the job for others.

    It never leads out of the directory, whatever the service sends.
    """
    parts = [part for part in file.name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    dropped = {"model": 2, "checkpoint": 2}.get(file.kind, 0)
    return "/".join(parts[dropped:]) or parts[-1]
