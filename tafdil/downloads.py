"""Files of jobs on their way to a directory: what is interrupted goes on where it stood, and hashes are checked."""

import hashlib
from pathlib import Path

from tafdil.errors import DamagedDownload
from tafdil.models import Artifact


class Download:
    """One file. Bytes go to `<name>.<hash>.part`, which becomes `<name>` when its hash is the one that the service told."""

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
        """Of the request for what is missing."""
        if not 0 < self._done < self._file.size_bytes:
            return {}
        return {"Range": f"bytes={self._done}-", "If-Range": f'"{self._file.sha256}"'}

    def begin(self, status: int) -> None:
        """Tells the status of the reply: one that does not go on where the part ends begins anew."""
        if status != 206:
            self._part.write_bytes(b"")

    def write(self, data: bytes) -> None:
        with self._part.open("ab") as file:
            file.write(data)

    def finish(self) -> Path:
        """Gives the file its name. Raises `DamagedDownload`, and then the next try begins anew."""
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
    """A model's or a checkpoint's file by its path below the model, others by their path below the job.

    Never a way out of the directory, whatever the service says.
    """
    parts = [part for part in file.name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    dropped = {"model": 2, "checkpoint": 2}.get(file.kind, 0)
    return "/".join(parts[dropped:]) or parts[-1]
