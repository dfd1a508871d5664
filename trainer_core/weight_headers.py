"""What the headers of a model's safetensors files hold, against what its configuration asks for. Reads no weights."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from trainer_core import model_files
from trainer_core.errors import Detail, ModelRefused
from trainer_core.loading import loading

Shape = tuple[int, ...]


def lacks(path: str, missing: Iterable[str], field: str = "model_name") -> ModelRefused:
    """The error for weights that the files do not hold: transformers would draw them at random."""
    names = sorted(missing)
    return ModelRefused(
        f"the files of the model {path!r} lack {len(names)} weights, the first is {names[0]}; copy the model again",
        [Detail(field, f"lacks {names[0]}")],
    )


def shapes(files: Iterable[Path]) -> dict[str, Shape]:
    """The shape of every tensor in safetensors files. Raises `ValueError` for one that is not whole."""
    found: dict[str, Shape] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as stored:
                for name in stored.keys():  # noqa: SIM118  # not a dict
                    found[name] = tuple(stored.get_slice(name).get_shape())
        except SafetensorError as error:
            raise ValueError(f"{file.name} is not a whole safetensors file ({error}); copy it again") from error
    return found


def check(skeleton: Any, path: str, field: str) -> None:
    """Raises `ModelRefused` unless the files hold every weight of a model, in its shape.

    Of weights that transformers converts while it loads, as packed or merged ones, only the headers are read.

    Args:
        skeleton: the model of the configuration, on any device.
        path: a directory, or a name on the hub.
        field: that named it.
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
    """Raises `ModelRefused` unless weights by name are all that a model has, each in its shape."""
    wanted: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if missing := _missing(model, wanted, found):
        raise lacks(path, missing, field)
    others = sorted(name for name, shape in wanted.items() if found.get(name, shape) != shape)
    if others:
        first = others[0]
        raise ModelRefused(
            f"the weights of the model {path!r} do not fit its config.json: {first} has the shape {found[first]}, the "
            f"configuration asks for {wanted[first]} ({len(others)} weights in all); use the config.json of these weights",
            [Detail(field, f"has another shape of {first}")],
        )


def _renamed(found: dict[str, Shape], skeleton: Any, renamings: list[Any]) -> dict[str, Shape]:
    """Under the names that transformers gives them while it loads."""
    names, prefix = skeleton.state_dict(), skeleton.base_model_prefix
    return {rename_source_key(name, renamings, [], prefix, names)[0]: shape for name, shape in found.items()}


def _missing(model: Any, wanted: Iterable[str], found: dict[str, Shape]) -> set[str]:
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    present = set(found)
    # One name of weights that are tied is enough.
    present |= {source for target, source in tied.items() if target in found}
    present |= {target for target, source in tied.items() if source in present}
    ignored = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return {name for name in wanted if name not in present and not any(re.search(pattern, name) for pattern in ignored)}
