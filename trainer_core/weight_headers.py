"""Compares the headers of a model's safetensors files with what its configuration asks for. Reads no weights."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from trainer_core import model_files
from trainer_core.errors import ModelRefused
from trainer_core.loading import loading
from trainer_core.wording import say

Shape = tuple[int, ...]


def lacks(path: str, missing: Iterable[str], field: str = "model_name") -> ModelRefused:
    """The error for weights that the files lack: transformers would initialise them at random."""
    names = sorted(missing)
    return ModelRefused.at(field, say("model_lacks_weights", model=path, n=len(names), first=names[0]))


def shapes(files: Iterable[Path]) -> dict[str, Shape]:
    """The shape of every tensor in safetensors files. Raises `ValueError` for an incomplete file."""
    found: dict[str, Shape] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as stored:
                for name in stored.keys():  # noqa: SIM118  # not a dict
                    found[name] = tuple(stored.get_slice(name).get_shape())
        except SafetensorError as error:
            raise ValueError(say("weights_file_broken", file=file.name, problem=str(error))) from error
    return found


def check(skeleton: Any, path: str, field: str) -> None:
    """Raises `ModelRefused` unless the files hold every weight of a model, in the right shape.

    If transformers converts weights while loading, such as packed or merged ones, the headers are read but not compared.

    Args:
        skeleton: the model that the configuration describes, on any device.
        path: a directory, or a name on the hub.
        field: the config field that named it.
    """
    with loading(path, field):
        files = model_files.weight_files(path)
        found = shapes(files)
    if not files or getattr(skeleton.config, "quantization_config", None):
        return
    transforms = get_model_conversion_mapping(skeleton)
    if not all(isinstance(transform, WeightRenaming) for transform in transforms):
        return
    check_names(skeleton, _renamed(found, skeleton, transforms), path, field)


def check_names(model: Any, found: dict[str, Shape], path: str, field: str) -> None:
    """Raises `ModelRefused` unless the named weights include all of a model's, each in the right shape."""
    wanted: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if missing := _missing(model, wanted, found):
        raise lacks(path, missing, field)
    others = sorted(name for name, shape in wanted.items() if found.get(name, shape) != shape)
    if others:
        first = others[0]
        shapes_of = {"found": str(found[first]), "wanted": str(wanted[first])}
        raise ModelRefused.at(field, say("weights_wrong_shape", model=path, n=len(others), first=first, **shapes_of))


def _renamed(found: dict[str, Shape], skeleton: Any, renamings: list[Any]) -> dict[str, Shape]:
    """The shapes under the names that transformers uses while loading."""
    names, prefix = skeleton.state_dict(), skeleton.base_model_prefix
    return {rename_source_key(name, renamings, [], prefix, names)[0]: shape for name, shape in found.items()}


def _missing(model: Any, wanted: Iterable[str], found: dict[str, Shape]) -> set[str]:
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    present = set(found)
    # One name is enough for tied weights.
    present |= {source for target, source in tied.items() if target in found}
    present |= {target for target, source in tied.items() if source in present}
    ignored = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return {name for name in wanted if name not in present and not any(re.search(pattern, name) for pattern in ignored)}
