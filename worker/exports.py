"""Answers of the exports worker (`worker.export_worker`): merges of adapters, and pushes to a hub. On the CPU."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jobs.access import DEFAULT_TENANT
from jobs.artifacts import ArtifactFile, ArtifactKind, hashed
from jobs.errors import Forbidden, NotFound, StateConflict
from jobs.places import find_model, run_dir
from jobs.records import JobRecord
from jobs.repository import artifacts, tasks
from jobs.states import TaskKind
from jobs.storage import Storage
from trainer_core.checkpoints import link
from trainer_core.errors import ModelNotFound
from trainer_core.wording import say
from worker.desk import Answer, Desk, model_directory, trained_job
from worker.leftovers import merged_folder, staging_prefix


def _answer(desk: Desk) -> dict[str, Any]:
    job = trained_job(desk)
    return _merge(desk, job) if desk.task.kind == TaskKind.MERGE else _push(desk, job)


def _merge(desk: Desk, job: JobRecord) -> dict[str, Any]:
    from trainer_core.merging import merge

    root, storage = run_dir(desk.settings, job.id), Storage(desk.settings)
    # A directory for this attempt alone, so that no other attempt interferes.
    target = root / merged_folder(desk.task)
    files: list[ArtifactFile] = []
    try:
        told = merge(model_directory(desk, job), target, lambda name: find_model(desk.settings, name))
        files += hashed(root, sorted(path for path in target.rglob("*") if path.is_file()), ArtifactKind.MERGED)
        storage.publish(job.id, files)
        with desk.database.transaction() as session:
            if not tasks.is_held(session, desk.task):
                raise StateConflict(say("merge_taken_over"))
            earlier = [file for file in artifacts.of_job(session, job.id) if file.kind == ArtifactKind.MERGED]
            artifacts.remove(session, job.id, [file.id for file in earlier])
            artifacts.add(session, job.tenant, job.id, files)
    except BaseException:
        # Leave no unlisted files behind.
        storage.delete(job.id, [file.name for file in files])
        for folder in (target, target.with_name(f".{target.name}")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    storage.delete(job.id, [file.name for file in earlier])
    return {**told, "files": len(files), "size_bytes": sum(file.size_bytes for file in files)}


def _push(desk: Desk, job: JobRecord) -> dict[str, Any]:
    settings, request = desk.settings, desk.task.request
    if settings.hub_token is None or settings.hub_namespace is None:
        raise Forbidden(say("hub_not_set_up"))
    with desk.database.reading() as session:
        found = [file for file in artifacts.of_job(session, job.id) if file.kind == request["kind"]]
    Storage(settings).fetch(job.id, found)
    files = [file.name for file in found]
    if not files:
        raise NotFound(say("job_no_files", id=job.id, kind=request["kind"]))
    root = run_dir(settings, job.id)
    folder = root / os.path.commonpath([os.path.dirname(name) for name in files])
    names = [(root / name).relative_to(folder).as_posix() for name in files]
    if "README.md" not in names:
        with TemporaryDirectory(dir=root, prefix=staging_prefix(desk.task)) as staged:
            names = complete(folder, names, Path(staged), lambda name: find_model(settings, name))
            return _push_as(desk, job, Path(staged), names)
    return _push_as(desk, job, folder, names)


def complete(folder: Path, names: list[str], staged: Path, locate: Callable[[str], str]) -> list[str]:
    """Stages the files of an earlier version in today's form: with a model card, and the base model by name.

    Args:
        names: paths of the files below `folder`.
        staged: an empty directory on the same disk.
        locate: returns the base model's path for its name.

    Returns:
        The names of the staged files.
    """
    from trainer_core import model_card
    from trainer_core.models import DTYPES, answering_dtype, dtype_name

    for name in names:
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        link(folder / name, staged / name)
    (found,) = folder.glob("*_metadata.json")
    metadata = json.loads(found.read_text(encoding="utf-8"))
    for config in staged.rglob("adapter_config.json"):
        named = {**json.loads(config.read_text(encoding="utf-8")), "base_model_name_or_path": metadata["model_name"]}
        # A hard link to the same file must keep its content.
        config.unlink()
        config.write_text(json.dumps(named, indent=2), encoding="utf-8")
    base, dtype = metadata["model_name"], DTYPES[metadata["precision"]]
    # A missing base model must not prevent the export of a model trained from it.
    with suppress(ModelNotFound):
        base = locate(base)
        dtype = answering_dtype(base if (staged / "adapter_config.json").is_file() else str(staged))
    metadata["dtype"] = dtype_name(dtype)
    model_card.write(staged, metadata, base, merged=(staged / "merged.json").is_file())
    return [*names, model_card.FILE]


def _push_as(desk: Desk, job: JobRecord, folder: Path, names: list[str]) -> dict[str, Any]:
    settings, request = desk.settings, desk.task.request
    assert settings.hub_token is not None, "checked before"
    # All tenants share the account. The operator's names are used as given; other tenants' names include the job's id.
    name = request["name"] if job.tenant == DEFAULT_TENANT else f"{request['name']}-{job.id[:8]}"
    repository = f"{settings.hub_namespace}/{name}"
    return push(folder, names, repository, settings.hub_token.get_secret_value(), private=request["private"])


def push(
    folder: Path, names: list[str], repository: str, token: str, *, private: bool, endpoint: str | None = None
) -> dict[str, Any]:
    """Uploads files to a repository on the hub, creating it if needed. Raises `Forbidden` if the hub refuses.

    Args:
        names: paths of the files below `folder`.
        endpoint: the hub's URL; default huggingface_hub's (`HF_ENDPOINT`).
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi(endpoint=endpoint, token=token)
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=names, commit_message="A model trained with Tafdil"
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise Forbidden(say("hub_refused", repository=repository, status=status)) from error
    return {"repository": repository, "url": commit.commit_url, "files": len(names)}


ANSWERS: Mapping[TaskKind, Answer] = {TaskKind.MERGE: _answer, TaskKind.PUSH: _answer}
