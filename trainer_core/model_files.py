"""What a model's files may contain: no code to run, no path outside the model, weights in safetensors alone.

transformers and peft get flags for the same rules. This check runs first: a flag was not always enough, and some rules have
no flag.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download, try_to_load_from_cache

from trainer_core import config_values
from trainer_core.errors import ModelRefused
from trainer_core.wording import Message, say

WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
_INDEX = f"{WEIGHTS}.index.json"
_ADAPTER_CONFIG = "adapter_config.json"
# The values of these fields may name a module, a repository or a program.
_CODE = frozenset({"auto_map", "trust_remote_code", "custom_generate", "megatron_config"})
_ATTENTION = frozenset({"_attn_implementation", "_attn_implementation_internal", "attn_implementation"})
_KNOWN_ATTENTION = frozenset({None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"})
# Module counts: transformers creates all modules before it reads any weights.
_COUNTS = re.compile(r"(num|n)_([a-z_]+_)?(layers?|experts|blocks|labels)")
_MOST_MODULES = 2048
# Files that an index names.
_FILES = frozenset({"configuration_files", "fast_tokenizer_files"})
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def is_adapter(path: str) -> bool:
    """Whether a model's files are an adapter's: transformers would load the base that they name, wherever it is."""
    folder = _folder(path)
    return folder is not None and (folder / _ADAPTER_CONFIG).is_file()


def check(path: str, field: str, needs_weights: bool = True) -> None:
    """Raises `ModelRefused` if the files of a model or adapter contain what they must not.

    Args:
        path: a directory, or a name on the hub.
        field: the config field that named it.
        needs_weights: whether to refuse an adapter without safetensors weights, because it may bring a pickle.
    """

    def refuse(file: str, reason: Message) -> ModelRefused:
        return ModelRefused.at(field, say("model_file_refused", model=path, file=file, reason=reason))

    folder = _folder(path)
    if folder is None:
        return
    # Some configurations are for one version of transformers, such as config.4.0.0.json.
    for file in sorted(folder.glob("*config*.json")):
        content = _read(file, refuse)
        if not isinstance(content, dict):
            raise refuse(file.name, say("model_file_not_object"))
        for reason in chain(_faults(content), config_values.faults(file.name, content)):
            raise refuse(file.name, reason)
    if (folder / _INDEX).is_file():
        index = _read(folder / _INDEX, refuse)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not all(_is_weights(shard) for shard in shards.values()):
            raise refuse(_INDEX, say("model_file_index"))
    if needs_weights and is_adapter(path) and not (folder / ADAPTER_WEIGHTS).is_file():
        raise refuse(_ADAPTER_CONFIG, say("model_file_no_weights"))


def weight_files(path: str, name: str = WEIGHTS) -> list[Path]:
    """The safetensors files of a model or adapter on this machine: one, or the shards that an index lists.

    Nothing is downloaded: if a hub model is not completely in the cache, the list is empty.

    Args:
        path: a directory, or a name on the hub.
        name: `WEIGHTS` or `ADAPTER_WEIGHTS`.
    """
    whole, index = on_disk(path, name), on_disk(path, f"{name}.index.json")
    # transformers looks for them in this order.
    if whole:
        return [whole]
    if index is None:
        return []
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if Path(path).is_dir():
        return [Path(path) / shard for shard in shards]
    cached = [on_disk(path, shard) for shard in shards]
    return [shard for shard in cached if shard] if all(cached) else []


def on_disk(path: str, name: str) -> Path | None:
    """A file of a model on this machine, in its directory or in the hub's cache; None if it is not there."""
    if Path(path).is_dir():
        return Path(path) / name if (Path(path) / name).is_file() else None
    with suppress(ValueError):
        found = try_to_load_from_cache(path, name)
        return Path(found) if isinstance(found, str) else None
    return None


def _folder(path: str) -> Path | None:
    """The directory with a model's small files; None if it is neither a directory nor available from the hub."""
    return Path(path) if Path(path).is_dir() else _from_hub(path)


@lru_cache
def _from_hub(name: str) -> Path | None:
    # The load itself reports an invalid name, or a hub that does not answer.
    with suppress(OSError, ValueError):
        return Path(snapshot_download(name, allow_patterns=["*config*.json", _INDEX, ADAPTER_WEIGHTS]))
    return None


def _read(file: Path, refuse: Any) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise refuse(file.name, say("model_file_not_json")) from error


def _faults(value: Any) -> Iterator[Message]:
    """The forbidden values in a configuration, at any depth."""
    if isinstance(value, list):
        for item in value:
            yield from _faults(item)
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        if name in _CODE and inner:
            yield say("model_file_code", name=name)
        elif name in _ATTENTION and not (isinstance(inner, str | None) and inner in _KNOWN_ATTENTION):
            yield say("model_file_attention", name=name, value=repr(inner)[:50])
        elif _COUNTS.fullmatch(name) and isinstance(inner, int | float) and inner > _MOST_MODULES:
            yield say("model_file_count", name=name, value=inner, limit=_MOST_MODULES)
        elif name in _FILES and not (isinstance(inner, list) and all(_is_plain(file) for file in inner)):
            yield say("model_file_outside", name=name)
        else:
            yield from _faults(inner)


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and bool(_PLAIN_NAME.fullmatch(name))


def _is_weights(name: Any) -> bool:
    return _is_plain(name) and name.endswith(".safetensors")
