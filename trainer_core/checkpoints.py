"""Checkpoints that are complete or absent: staged, hashed, synced, renamed; read back only if the hashes match.

transformers writes a checkpoint file by file into its final directory. A kill in between leaves half a checkpoint, from
which a run would resume. Here a directory named `checkpoint-<step>` with a manifest is complete by construction.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from trainer_core.disk import is_disk_full
from trainer_core.errors import DiskFull, SpecInvalid
from trainer_core.wording import say

MANIFEST = "manifest.json"
STAGING_PREFIX = ".staging-"
PENDING = "pending_metrics.json"
STATE_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", PENDING)
"""Files that every checkpoint has besides its weights. Without any one of them a run cannot be resumed exactly."""
WEIGHT_FILES = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
"""A checkpoint keeps its weights in one of these files; the last one lists shards in the same directory."""
_TOO_LITTLE_BYTES = 2**16
_RESULTS = ("checkpoint-*", "*_metadata.json", "adapter_*", "model*.safetensors*", "ref", f"{STAGING_PREFIX}*")


def publish(staged: Path, run_dir: Path, step: int) -> Path:
    """Turns a fully written staging directory into `run_dir/checkpoint-<step>`, durably and atomically.

    Raises:
        RuntimeError: it lacks a file that resuming needs.
    """
    if lacking := _lacking(staged):
        raise RuntimeError(say("checkpoint_incomplete", step=step, files=lacking))
    files = {name: _sha256(staged / name) for name in sorted(_names(staged))}
    (staged / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1), encoding="utf-8")
    for path in staged.rglob("*"):
        _sync(path)
    _sync(staged)
    final = run_dir / f"checkpoint-{step}"
    shutil.rmtree(final, ignore_errors=True)
    staged.rename(final)
    _sync(run_dir)
    return final


def verified_step(checkpoint: Path) -> int | None:
    """The step of a complete checkpoint whose files are exactly those that were written, unchanged; otherwise None."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        if _lacking(checkpoint) or _names(checkpoint) != set(manifest["files"]):
            return None
        if all(_sha256(checkpoint / name) == digest for name, digest in manifest["files"].items()):
            return int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def newest_verified(run_dirs: Iterable[Path]) -> Path | None:
    """The verified checkpoint with the highest step in several run directories."""
    found = [path for run_dir in run_dirs for path in run_dir.glob("checkpoint-*")]
    for path in sorted(found, key=_named_step, reverse=True):
        if verified_step(path) is not None:
            return path
    return None


def newest_in(run_dir: Path) -> Path:
    """The newest verified checkpoint of a directory. Raises `SpecInvalid` if there is none."""
    found = newest_verified([run_dir])
    if found is None:
        seen = sorted((path.name for path in run_dir.glob("checkpoint-*")), key=lambda name: _named_step(Path(name)))
        if seen:
            sentence = say("checkpoint_none_whole", directory=str(run_dir), names=seen)
        else:
            sentence = say("checkpoint_none", directory=str(run_dir))
        raise SpecInvalid.at("resume_from_checkpoint", sentence)
    return found


def prune(run_dir: Path, keep: int, protected: Collection[int | None] = ()) -> None:
    """Removes all checkpoints except the `keep` newest and the protected ones, and staging directories left by a kill."""
    for path in sorted(run_dir.glob("checkpoint-*"), key=_named_step)[:-keep]:
        if _named_step(path) not in protected:
            shutil.rmtree(path, ignore_errors=True)
    for path in run_dir.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def clear(run_dir: Path) -> list[str]:
    """Removes what an earlier run left, which the next one would mistake for its own. Returns the names, sorted."""
    found = sorted(path for pattern in _RESULTS for path in run_dir.glob(pattern))
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [path.name for path in found]


def carry(checkpoint: Path, run_dir: Path) -> None:
    """Adds another run directory's checkpoint to this one, without copying its bytes if the disk allows."""
    target = run_dir / checkpoint.name
    if target.exists():
        return
    staged = run_dir / f"{STAGING_PREFIX}carried-{os.getpid()}"
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(checkpoint, staged, copy_function=link)
    staged.rename(target)


def link(source: str | Path, target: str | Path) -> None:
    """Gives a file a second name, or copies it if the disk does not support hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class StagedCheckpoints:
    """Mixin for a transformers trainer: every checkpoint is staged and published."""

    args: Any
    state: Any
    observer: Any
    protected_step: int | None = None
    """The step whose checkpoint is never pruned."""
    _staging: Path | None = None

    def write_more(self, staged: Path) -> None:
        """Adds to a checkpoint before it is published."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_dir, step = Path(self.args.output_dir), self.state.global_step
        self.observer.phase("saving")
        try:
            self._write_checkpoint(model, trial, run_dir, step)
        except Exception as error:
            if not has_no_room(error, run_dir):
                raise
            # The newest one before this is enough to resume from; removing the others may free enough space for this one.
            prune(run_dir, 1, (self.protected_step,))
            self._write_again(model, trial, run_dir, step)
        prune(run_dir, self.args.save_total_limit or 2, (step, self.protected_step))
        self.observer.phase("training")

    def _write_checkpoint(self, model: Any, trial: Any, run_dir: Path, step: int) -> None:
        staging = run_dir / f"{STAGING_PREFIX}{step}-{os.getpid()}"
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)  # pyright: ignore[reportAttributeAccessIssue]
            staged = staging / f"checkpoint-{step}"
            # A pickle that nothing reads on resume, and that contains paths on this machine.
            (staged / "training_args.bin").unlink(missing_ok=True)
            self.write_more(staged)
            publish(staged, run_dir, step)
        finally:
            self._staging = None
            shutil.rmtree(staging, ignore_errors=True)

    def _write_again(self, model: Any, trial: Any, run_dir: Path, step: int) -> None:
        try:
            self._write_checkpoint(model, trial, run_dir, step)
        except Exception as error:
            if has_no_room(error, run_dir):
                raise DiskFull(say("disk_full_checkpoint", step=step)) from error
            raise


def has_no_room(error: BaseException, place: Path) -> bool:
    """Whether a write failed because the disk is full, according to the error or to the disk below `place`."""
    return is_disk_full(error) or shutil.disk_usage(place).free < _TOO_LITTLE_BYTES


def _lacking(checkpoint: Path) -> list[str]:
    """Files that resuming needs and a checkpoint lacks."""
    found = _names(checkpoint)
    lacking = [name for name in STATE_FILES if name not in found]
    weights = [name for name in WEIGHT_FILES if name in found]
    if not weights:
        return [say("checkpoint_weights"), *lacking]
    if weights == ["model.safetensors.index.json"]:
        index = json.loads((checkpoint / weights[0]).read_text(encoding="utf-8"))
        lacking += sorted(set(index["weight_map"].values()) - found)
    return lacking


def _named_step(path: Path) -> int:
    digits = path.name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1


def _names(checkpoint: Path) -> set[str]:
    """Its files except the manifest. Names that begin with a dot are still downloading from storage; nothing reads them."""
    found = (path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if not path.name.startswith(".")} - {MANIFEST}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
