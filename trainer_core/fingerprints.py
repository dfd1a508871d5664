"""Weights by name, and their fingerprints.

peft says which tensors belong to an adapter. Their names do not: an embedding's tensors are named differently from a linear
layer's.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from trainer_core import adapters
from trainer_core.errors import ReferenceMismatch
from trainer_core.wording import say

_STRETCH = 1024
Tensors = Iterable[tuple[str, Tensor]]


def base_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights without adapters, under the names that the base model gives them."""
    of_adapters = {id(tensor) for tensor in _adapter_parameters(model)}
    prefix = "base_model.model."
    for name, tensor in model.named_parameters():
        if id(tensor) not in of_adapters:
            yield name.removeprefix(prefix).replace(".base_layer.", "."), tensor


def _adapter_parameters(model: nn.Module) -> Iterator[Tensor]:
    """The parameters of all adapters."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                held = getattr(module, name, None)
                if isinstance(held, nn.Module):
                    yield from held.parameters()


def adapter_tensors(model: nn.Module, adapter: str | None) -> Iterator[tuple[str, Tensor]]:
    """One adapter's weights, under their names in its file: a copy under another name has the same fingerprint."""
    if adapter and hasattr(model, "peft_config"):
        yield from adapters.tensors(model, adapter).items()


def adapter_tensors_of_0_1(model: nn.Module, adapter: str | None) -> Iterator[tuple[str, Tensor]]:
    """The adapter's weights that fingerprints covered before metadata had a `proof`: all but those of embeddings."""
    mark = f".{adapter}."
    for name, tensor in model.named_parameters():
        if "lora_" in name and mark in name:
            yield name.replace(mark, "."), tensor


def check_covered(model: nn.Module, adapter: str | None) -> None:
    """Raises `ReferenceMismatch` unless the weights that train are exactly those that the fingerprint covers.

    Args:
        adapter: the one that trains; None if all weights train.
    """
    covered = {id(tensor) for _, tensor in (adapter_tensors(model, adapter) if adapter else base_tensors(model))}
    trains = {id(tensor): name for name, tensor in model.named_parameters() if tensor.requires_grad}
    missing = sorted(name for one, name in trains.items() if one not in covered)
    still = sorted(name for name, tensor in model.named_parameters() if id(tensor) in covered and not tensor.requires_grad)
    if missing:
        raise ReferenceMismatch(say("tensors_uncovered", n=len(missing), first=missing[0]))
    if still and adapter:
        raise ReferenceMismatch(say("adapter_tensors_still", n=len(still), first=still[0]))


def is_quantized(tensor: Tensor) -> bool:
    """Whether a weight is held in 4 bit."""
    return hasattr(tensor, "quant_state")


def fingerprint(tensors: Tensors) -> str:
    """SHA-256 (hex) over names, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        add(digest, name, tensor)
    return digest.hexdigest()


def add(digest: Any, name: str, tensor: Tensor) -> None:
    """Adds one tensor to a fingerprint."""
    digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
    digest.update(_bytes(tensor))
    # The codes alone would be the same for any multiple of the weights.
    for part, values in _quantization(tensor):
        digest.update(part.encode() + _bytes(values))


def _quantization(tensor: Tensor) -> list[tuple[str, Tensor]]:
    """The factors of 4-bit codes; empty for weights that are not quantized."""
    if not is_quantized(tensor):
        return []
    state: dict[str, Tensor] = tensor.quant_state.as_dict(packed=True)  # pyright: ignore[reportAttributeAccessIssue]
    return sorted(state.items())


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes()


class Remembered:
    """Fingerprints of weights that are requested repeatedly.

    SHA-256 of several gigabytes takes seconds, and weights on a GPU must be copied first. A checksum of every tensor,
    computed on its device, shows whether the weights still match the known fingerprint. If not, they are hashed again.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[list[tuple[str, int, int]], str]] = {}

    def fingerprint(self, key: str, tensors: Tensors, take: Callable[[list[tuple[str, Tensor]]], str] | None = None) -> str:
        """The fingerprint of live tensors.

        Args:
            key: the name under which they are remembered.
            take: computes the fingerprint; default: `fingerprint`. If it raises, so does this, and nothing is remembered.

        Raises:
            ReferenceMismatch: a model with 4-bit weights has changed since its first fingerprint.
        """
        found = list(tensors)
        sums = [
            (name, *_checksum(part))
            for name, tensor in found
            for part in (tensor, *(values for _, values in _quantization(tensor)))
        ]
        before = self._known.get(key)
        if before is None or before[0] != sums:
            if before and any(is_quantized(tensor) for _, tensor in found):
                # Nothing trains these, and no file holds them in packed form.
                name = next((now[0] for now, then in zip(sums, before[0], strict=False) if now != then), sums[-1][0])
                raise ReferenceMismatch(say("weights_4bit_changed", tensor=name))
            self._known.pop(key, None)
            self._known[key] = sums, (take or fingerprint)(found)
        return self._known[key][1]


def _checksum(tensor: Tensor) -> tuple[int, int]:
    """Sums modulo 2⁶⁴ over a tensor's bytes: plain, and weighted by position, so that moved bytes are noticed."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    words = data[: len(data) // 8 * 8]
    if words.storage_offset() % 8:
        words = words.clone()
    numbers = words.view(torch.int64)
    rest = int(data[len(words) :].to(torch.int64).sum())
    stretches = numbers[: len(numbers) // _STRETCH * _STRETCH].view(-1, _STRETCH).sum(dim=1)
    last = numbers[len(numbers) // _STRETCH * _STRETCH :].sum()
    weights = 2 * torch.arange(len(stretches), device=stretches.device) + 1
    return int(stretches.sum() + last) + rest, int((stretches * weights).sum())


def side_fingerprint(base: str, adapter: str | None) -> str:
    """The fingerprint of a base with an adapter, from those of both; the base's if there is no adapter."""
    return hashlib.sha256(f"{base}+{adapter}".encode()).hexdigest() if adapter else base
