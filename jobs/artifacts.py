"""What a job leaves behind: its model, checkpoints, logs and metrics, as files listed by id with their hashes.

Below a job's directory in the runs directory:

    attempt-2/output/            the trained model: weights or adapter, tokenizer, configurations, metadata
    attempt-2/output/checkpoint-40/
    attempt-2/log.txt            what the run printed
    attempt-2/metrics.csv        every metric point
    attempt-2/manifest.json      the specs, and all files with their hashes
    merged-<id>/                 full weights, on demand
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from jobs.records import ArtifactRecord

MERGED_PREFIX = "merged-"
"""How the names of the directories of merges begin."""
_CHECKPOINT_MANIFEST = "manifest.json"
_CHECKPOINT = re.compile(r"attempt-\d+/output/checkpoint-\d+/")
_ATTEMPT = re.compile(r"attempt-(\d+)/")


class ArtifactKind(StrEnum):
    """What a file is part of."""

    MODEL = "model"
    MERGED = "merged"
    CHECKPOINT = "checkpoint"
    LOG = "log"
    METRICS = "metrics"
    MANIFEST = "manifest"


@dataclass(frozen=True)
class ArtifactFile:
    """One file, by its path below the job's directory."""

    kind: ArtifactKind
    name: str
    size_bytes: int
    sha256: str

    @property
    def attempt(self) -> int | None:
        found = _ATTEMPT.match(self.name)
        return int(found.group(1)) if found else None


def checkpoint_files(run_dir: Path) -> Iterator[ArtifactFile]:
    """The files of all complete checkpoints, with the hashes computed when they were written."""
    for folder in sorted(run_dir.glob("attempt-*/output/checkpoint-*")):
        try:
            manifest = json.loads((folder / _CHECKPOINT_MANIFEST).read_text(encoding="utf-8"))
            files = {folder / name: sha for name, sha in manifest["files"].items() if leads_inside(run_dir, folder / name)}
            found = [_file(run_dir, path, ArtifactKind.CHECKPOINT, sha) for path, sha in files.items()]
            found += hashed(run_dir, [folder / _CHECKPOINT_MANIFEST], ArtifactKind.CHECKPOINT)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # Rotated away meanwhile, or incomplete.
            continue
        yield from found


def attempts_here(run_dir: Path) -> set[int]:
    """The attempts that ran on this machine, found by their logs. Others may have left a fetched checkpoint here."""
    return {int(path.parent.name.removeprefix("attempt-")) for path in run_dir.glob("attempt-*/log.txt")}


def newest_checkpoint(files: Iterable[ArtifactRecord]) -> list[ArtifactRecord]:
    """The files of the checkpoint with the highest step."""
    by_folder: dict[str, list[ArtifactRecord]] = {}
    for file in files:
        if found := _CHECKPOINT.match(file.name):
            by_folder.setdefault(found.group(0), []).append(file)
    newest = max(by_folder, key=lambda folder: int(folder.rpartition("-")[2].rstrip("/")), default="")
    return by_folder.get(newest, [])


def model_files(run_dir: Path, folder: Path, hashes: dict[str, str]) -> Iterator[ArtifactFile]:
    """The files of a trained model, with the hashes that its run reported."""
    for name, sha256 in sorted(hashes.items()):
        if leads_inside(run_dir, folder / name):
            yield _file(run_dir, folder / name, ArtifactKind.MODEL, sha256)


def hashed(run_dir: Path, paths: Iterable[Path], kind: ArtifactKind) -> Iterator[ArtifactFile]:
    """The files that exist, hashed now."""
    for path in paths:
        if path.is_file() and leads_inside(run_dir, path):
            with path.open("rb") as file:
                yield _file(run_dir, path, kind, hashlib.file_digest(file, "sha256").hexdigest())


def leads_inside(run_dir: Path, path: Path) -> bool:
    """Whether a path stays in a job's directory after links are resolved: a run may leave arbitrary files."""
    return ".." not in path.parts and path.resolve().is_relative_to(run_dir.resolve())


def _file(run_dir: Path, path: Path, kind: ArtifactKind, sha256: str) -> ArtifactFile:
    return ArtifactFile(kind, path.relative_to(run_dir).as_posix(), path.stat().st_size, sha256)
