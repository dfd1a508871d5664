"""Storage of jobs' files: the runs directory, and an optional object store (`TAFDIL_ARTIFACTS_URL`).

With a store, a machine's runs directory is scratch space. An attempt writes there, and its files are copied to the store
before the job's state says that it ended. Other machines fetch them from the store.
"""

import shutil
import uuid
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]

from jobs.artifacts import MERGED_PREFIX, ArtifactFile, ArtifactKind, leads_inside
from jobs.errors import NotFound
from jobs.places import run_dir
from jobs.records import ArtifactRecord
from jobs.settings import Settings
from trainer_core.wording import Message, say


class Storage:
    """Files of jobs, by job id and name below the job's directory. Names come from the database, not from clients."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store: Any = None
        self._root = ""
        if settings.artifacts_url:
            self._store, self._root = fsspec.core.url_to_fs(settings.artifacts_url)

    def publish(self, job_id: str, files: Collection[ArtifactFile]) -> None:
        """Copies missing files to the store. Does nothing without a store."""
        if self._store is None:
            return
        for file in files:
            # A file that was rewritten, such as a log, has a different size or is small enough to copy twice.
            place = self._place(job_id, file.name)
            with suppress(FileNotFoundError):
                if file.kind is ArtifactKind.CHECKPOINT and self._store.size(place) == file.size_bytes:
                    continue
            self._store.put_file(str(self._path(job_id, file.name)), place)

    def has(self, job_id: str, name: str) -> bool:
        """Whether a file is on this machine or in the store."""
        if self._path(job_id, name).is_file():
            return True
        return self._store is not None and bool(self._store.exists(self._place(job_id, name)))

    def open(self, job_id: str, name: str) -> tuple[BinaryIO, int]:
        """A seekable file and its size. Raises `NotFound`."""
        path = self._path(job_id, name)
        with suppress(FileNotFoundError, IsADirectoryError):
            return path.open("rb"), path.stat().st_size
        if self._store is not None:
            self._store.invalidate_cache()
            with suppress(FileNotFoundError):
                found = self._store.open(self._place(job_id, name), "rb")
                return cast("BinaryIO", found), int(found.size)
        raise NotFound(self._gone(job_id, name))

    def fetch(self, job_id: str, files: Collection[ArtifactRecord]) -> None:
        """Fetches a job's files to this machine. Raises `NotFound` if one exists nowhere."""
        for file in files:
            path = self._path(job_id, file.name)
            if path.is_file():
                continue
            if self._store is None:
                raise NotFound(self._gone(job_id, file.name))
            path.parent.mkdir(parents=True, exist_ok=True)
            # A name for this process alone: another may fetch the same file.
            part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
            try:
                self._store.get_file(self._place(job_id, file.name), str(part))
            except FileNotFoundError as error:
                raise NotFound(self._gone(job_id, file.name)) from error
            part.replace(path)

    def merged(self, job_id: str) -> set[str]:
        """Names of the files that merges wrote, here and in the store, listed or not."""
        root = run_dir(self._settings, job_id)
        found = {path.relative_to(root).as_posix() for path in root.glob(f"{MERGED_PREFIX}*/**/*") if path.is_file()}
        if self._store is not None:
            self._store.invalidate_cache()
            stored = (str(path).partition(f"/{job_id}/")[2] for path in self._store.find(self._place(job_id, "")))
            found |= {name for name in stored if name.startswith(MERGED_PREFIX)}
        return found

    def delete(self, job_id: str, names: Collection[str]) -> None:
        """Deletes files, here and in the store. Missing ones are ignored."""
        root = run_dir(self._settings, job_id)
        for name in names:
            with suppress(NotFound):
                self._path(job_id, name).unlink(missing_ok=True)
            if self._store is not None:
                with suppress(FileNotFoundError):
                    self._store.rm_file(self._place(job_id, name))
        for folder in sorted({(root / name).parent for name in names}, reverse=True):
            _remove_empty(folder, root)

    def delete_job(self, job_id: str) -> None:
        """Deletes all of a job's files."""
        shutil.rmtree(run_dir(self._settings, job_id), ignore_errors=True)
        if self._store is not None:
            with suppress(FileNotFoundError):
                self._store.rm(self._place(job_id, ""), recursive=True)

    def _path(self, job_id: str, name: str) -> Path:
        """A file's path on this machine. Raises `NotFound` for a name or link that leads out of the job's directory."""
        path = run_dir(self._settings, job_id) / name
        if not leads_inside(run_dir(self._settings, job_id), path):
            raise NotFound(say("file_unknown", id=job_id, name=name))
        return path

    def _gone(self, job_id: str, name: str) -> Message:
        return say("file_gone" if self._store is None else "file_gone_everywhere", id=job_id, name=name)

    def _place(self, job_id: str, name: str) -> str:
        return f"{self._root}/{job_id}/{name}".rstrip("/")


def _remove_empty(folder: Path, root: Path) -> None:
    """Removes a directory and its parents, up to `root`, as long as they are empty."""
    with suppress(OSError):
        while folder != root:
            folder.rmdir()
            folder = folder.parent
