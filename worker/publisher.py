"""Writes and lists the files that an attempt leaves behind, with hashes, to be stored with its final state."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.artifacts import ArtifactFile, ArtifactKind, checkpoint_files, hashed, model_files
from jobs.curves import CurvePoint, as_csv
from jobs.records import JobRecord

log = logging.getLogger(__name__)


def leave(
    job: JobRecord, folder: Path, points: Sequence[CurvePoint], metadata: dict[str, Any] | None, model: dict[str, str]
) -> list[ArtifactFile]:
    """Writes an attempt's metrics and manifest beside its log, and lists all of the job's files.

    Args:
        folder: the attempt's directory.
        points: all metric points of the job.
        metadata: the trained model's metadata; None without a model.
        model: the hashes of the model's files, by path below `output`.
    """
    run_dir = folder.parent
    files = [*checkpoint_files(run_dir), *model_files(run_dir, folder / "output", model)]
    try:
        (folder / "metrics.csv").write_text(as_csv(points), encoding="utf-8")
        for kind, name in ((ArtifactKind.LOG, "log.txt"), (ArtifactKind.METRICS, "metrics.csv")):
            files += hashed(run_dir, sorted(run_dir.glob(f"attempt-*/{name}")), kind)
        manifest = {
            "job_id": job.id,
            "attempt": job.attempt,
            "sent_spec": job.spec,
            "resolved_spec": job.resolved_spec,
            "metadata": metadata,
            "files": [asdict(file) for file in files],
        }
        text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
        (folder / "manifest.json").write_text(text, encoding="utf-8")
        files += hashed(run_dir, [folder / "manifest.json"], ArtifactKind.MANIFEST)
    except OSError as error:
        # A full disk may cost the tables, but not the job's outcome.
        log.warning("job %s: its metrics or manifest could not be written: %s", job.id, error)
    return files
