"""A model's weights in its safetensors files: their fingerprint, and whether those in memory are the same.

Files are read one tensor at a time, whatever the model's size.
"""

import hashlib
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from trainer_core import model_files
from trainer_core.errors import ModelRefused, ReferenceMismatch
from trainer_core.fingerprints import add, is_quantized
from trainer_core.wording import say

# NF4 loses about a tenth of the weights' norm, at worst a third; unrelated weights differ by more than the whole norm.
_PACKING_ERROR = 0.5


def fingerprint_of_files(
    live: Iterable[tuple[str, Tensor]], path: str, owner: str | None = None, *, dtype: torch.dtype | None = None
) -> str:
    """SHA-256 (hex) of a model's weights in the dtype of its files, whatever dtype the model runs in.

    The format is that of `fingerprints.fingerprint`. A weight whose name is not in the files (transformers merges the
    experts of some models) is hashed as it is in memory, in the dtype of the files if that is lossless.

    Args:
        live: the model's weights by name. Each must equal the stored one, cast to the dtype that it runs in; 4-bit weights
            must be close to it.
        path: directory or hub name of the model.
        owner: whose weights they are, for messages; default: "the model".
        dtype: the dtype in which stored values are hashed; default: their own.

    Raises:
        ReferenceMismatch: a weight in memory differs from its file.
        ModelRefused: a file holds NaN or infinity.
    """
    owner = owner or say("kind.model")
    digest = hashlib.sha256()
    with _opened(model_files.weight_files(path)) as stored:
        usual = _usual_dtype(stored)
        for name, tensor in sorted(live, key=lambda item: item[0]):
            if name in stored:
                add(digest, name, in_dtype(_checked(name, tensor, *stored[name], owner), dtype))
            else:
                add(digest, name, in_dtype(_narrowed(tensor, usual), dtype))
    return digest.hexdigest()


def in_dtype(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor cast to a dtype; unchanged if there is no dtype, or if its values are not floating-point."""
    if dtype is None or is_quantized(tensor) or not tensor.is_floating_point():
        return tensor
    return tensor.detach().to(dtype)


def check(live: Mapping[str, Tensor], files: list[Path], owner: str) -> None:
    """Raises `ReferenceMismatch` or `ModelRefused` unless tensors in memory equal those with their names in the files."""
    with _opened(files) as stored:
        for name in sorted(live.keys() & stored.keys()):
            _checked(name, live[name], *stored[name], owner)


@contextmanager
def _opened(files: list[Path]) -> Generator[dict[str, tuple[Path, Any]]]:
    """For each tensor its file, and the opened file."""
    with ExitStack() as stack:
        found: dict[str, tuple[Path, Any]] = {}
        for file in files:
            held: Any = stack.enter_context(safe_open(file, "pt"))
            found |= dict.fromkeys(held.keys(), (file, held))
        yield found


def _checked(name: str, live: Tensor, file: Path, held: Any, owner: str) -> Tensor:
    """A file's tensor, compared with the one in memory."""
    weights: Tensor = held.get_tensor(name)
    if not torch.isfinite(weights if weights.element_size() > 1 else weights.float()).all():
        raise ModelRefused.at("model_name", say("weights_not_finite", file=file.name, tensor=name))
    is_same = _is_packed(weights, live) if is_quantized(live) else torch.equal(weights.to(live.dtype), live.detach().cpu())
    if not is_same:
        raise ReferenceMismatch(say("weights_not_of_files", owner=owner, tensor=name, file=file.name))
    return weights


def _is_packed(weights: Tensor, live: Any) -> bool:
    """Whether 4-bit weights can come from a file's. Which of two close codes a weight gets may depend on the device."""
    from bitsandbytes.functional import dequantize_4bit

    with torch.no_grad():
        unpacked = dequantize_4bit(live.detach(), live.quant_state).float().cpu()
    whole = weights.float()
    if unpacked.shape != whole.shape:
        return False
    return bool((unpacked - whole).norm() <= _PACKING_ERROR * whole.norm())


def _usual_dtype(stored: Mapping[str, tuple[Path, Any]]) -> torch.dtype | None:
    names = Counter(held.get_slice(name).get_dtype() for name, (_, held) in stored.items())
    known = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
    return known.get(names.most_common(1)[0][0]) if names else None


def _narrowed(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or is_quantized(tensor) or not tensor.is_floating_point():
        return tensor
    narrow = tensor.detach().to(dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor
