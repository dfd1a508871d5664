"""Paths: data below the data directory, models below the models directories, runs below the runs directory.

Clients send ids and relative names. Every opened path is built here and stays inside its directory.
"""

import shutil
from pathlib import Path
from typing import Any, cast

from jobs.errors import NotFound
from jobs.settings import SHIPPED_MODELS_DIR, Settings
from trainer_core.errors import DataInvalid, ModelNotFound
from trainer_core.wording import say

SHIPPED_DATA_DIR = SHIPPED_MODELS_DIR.parent / "data"
# Models that shipped with earlier versions, and their replacements, which have different weights.
_REPLACED = {"tafdil/tiny-arabic-qwen": "tafdil/tiny-arabic-qwen-2"}
# What the service itself keeps below the data directory.
_OWN_DIRS = frozenset({"artifacts", "cache", "datasets", "locks", "logs", "runs", "valkey"})


def data_file(settings: Settings, relative: str, field: str = "dataset_path") -> Path:
    """The file that a client names relative to the data directory.

    Raises:
        DataInvalid: it is outside the directory, missing, not a file, or empty.
    """

    def refuse(code: str) -> DataInvalid:
        return DataInvalid.at(field, say(code, path=relative))

    root = settings.data_dir.resolve()
    try:
        path = (root / relative).resolve()
    except (ValueError, OSError) as error:
        raise refuse("path_unusable") from error
    if Path(relative).is_absolute() or "\\" in relative or not path.is_relative_to(root):
        raise refuse("path_outside")
    # Uploads and runs belong to their tenants; a path would bypass that.
    inside = path.relative_to(root).parts
    if (inside and inside[0] in _OWN_DIRS) or path.name.startswith("tafdil.sqlite3"):
        raise refuse("path_of_service")
    try:
        is_empty = path.is_file() and path.stat().st_size == 0
    except OSError as error:
        raise refuse("path_unusable") from error
    if not path.is_file():
        raise refuse("path_missing")
    if is_empty:
        raise refuse("path_empty")
    return path


def dataset_file(settings: Settings, dataset_id: str) -> Path:
    """The file of an uploaded dataset. Raises `NotFound` if it was removed from disk."""
    path = settings.datasets_dir / f"{dataset_id}.rows"
    if not path.is_file():
        raise NotFound(say("dataset_file_gone", id=dataset_id))
    return path


def find_model(settings: Settings, name: str, field: str = "model_name") -> str:
    """The directory of the model or adapter `name`, or the name itself if the hub is allowed.

    Args:
        field: the spec field to name in errors.

    Raises:
        ModelNotFound: no such directory, and the hub is not allowed.
    """
    for root in settings.model_dirs:
        folder = (root / name).resolve()
        is_there = any((folder / file).is_file() for file in ("config.json", "adapter_config.json"))
        if folder.is_relative_to(root.resolve()) and is_there:
            return str(folder)
    if name in _REPLACED:
        raise ModelNotFound.at(field, say("model_replaced", name=name, new=_REPLACED[name]))
    if settings.allow_hub:
        if Path(name).exists():
            # transformers would load this directory as the model and not ask the hub.
            raise ModelNotFound.at(field, say("model_is_a_file", name=name))
        return name
    known = available_models(settings)
    raise ModelNotFound.at(
        field, say("model_not_here", name=name, models=known) if known else say("model_none_here", name=name)
    )


def available_models(settings: Settings) -> list[str]:
    """Names of the models on disk."""
    found = {
        str(config.parent.relative_to(root))
        for root in settings.model_dirs
        for pattern in ("*/config.json", "*/*/config.json")
        for config in root.glob(pattern)
    }
    return sorted(found)


def model_places(settings: Settings, spec: dict[str, Any]) -> dict[str, str]:
    """Where each model of a resolved spec is, by name. Raises `ModelNotFound`."""
    # Jobs stored before a field existed lack it.
    named = {field: spec.get(field) for field in ("model_name", "ref_model_name", "adapter_name")}
    return {name: find_model(settings, name, field) for field, name in named.items() if name}


def data_places(settings: Settings, spec: dict[str, Any]) -> dict[str, Any]:
    """The data paths of a resolved spec, by their names in the library's config. Raises `DataInvalid`."""

    def place(dataset_id: str | None, path: str | None, field: str) -> str | None:
        if dataset_id:
            try:
                return str(dataset_file(settings, dataset_id))
            except NotFound as error:
                raise DataInvalid(error.message) from error
        return str(data_file(settings, path, field)) if path else None

    mix: list[dict[str, Any]] = [
        {
            "path": place(each["dataset_id"], each["dataset_path"], f"datasets.{index}.dataset_path"),
            **{name: each[name] for name in ("name", "rows", "weight")},
        }
        # Jobs stored before the field existed lack it.
        for index, each in enumerate(spec.get("datasets") or [])
    ]
    twice = next((each for index, each in enumerate(mix) if each["path"] in [one["path"] for one in mix[:index]]), None)
    if twice:
        # The spec can name the file in two ways.
        raise DataInvalid.at("datasets", say("mix_file_twice", name=twice["name"]))
    return {
        **{
            f"{field}_path": place(spec[f"{field}_id"], spec[f"{field}_path"], f"{field}_path")
            for field in ("dataset", "eval_dataset")
        },
        "datasets": mix or None,
        "cache_dir": str(settings.cache_dir.resolve()),
        "cache_gib": settings.cache_gib,
    }


def versions_of(settings: Settings, spec: dict[str, Any]) -> list[Any]:
    """As JSON, what tells apart the versions of the files that a resolved spec names: it differs once one has changed.

    Raises what `data_places` and `model_places` raise.
    """
    data = data_places(settings, spec)
    named = [data["dataset_path"], data["eval_dataset_path"], *(each["path"] for each in data["datasets"] or [])]
    found: list[Any] = []
    for place in [*filter(None, named), *model_places(settings, spec).values()]:
        path = Path(place)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(file.name, file.stat()) for file in files if file.is_file()]
        found.append([place, [[name, stat.st_mtime_ns, stat.st_size] for name, stat in stats]])
    return found


def run_dir(settings: Settings, job_id: str) -> Path:
    return settings.runs_dir.resolve() / job_id


def attempt_dir(settings: Settings, job_id: str, attempt: int) -> Path:
    """The directory that one attempt, and no other, writes to."""
    return run_dir(settings, job_id) / f"attempt-{attempt}"


def without_places(settings: Settings, error: dict[str, Any]) -> dict[str, Any]:
    """An error as clients see it, without this machine's paths to models and data."""
    roots = [*settings.model_dirs, settings.runs_dir, settings.data_dir]

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shown(each) for name, each in cast("dict[str, Any]", value).items()}
        if isinstance(value, list | tuple):
            return [shown(each) for each in cast("list[Any]", value)]
        if isinstance(value, str):
            for root in roots:
                value = value.replace(f"{root.resolve()}/", "").replace(f"{root}/", "")
        return value

    return {name: shown(value) for name, value in error.items()}


def install_samples(settings: Settings) -> None:
    """Copies the sample data to `<data_dir>/samples`, so that the documented examples work out of the box."""
    target = settings.data_dir / "samples"
    if not target.exists():
        shutil.copytree(SHIPPED_DATA_DIR, target, dirs_exist_ok=True)
