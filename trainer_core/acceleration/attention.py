"""Attention over a packed row: each segment with what comes before it, and nothing else.

On a GPU, one call of PyTorch's kernel for rows of varied length computes a whole layer. Elsewhere, and for inputs that the
kernel does not support, a loop over the segments executes the same plan.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainer_core.acceleration.packing import Packed, Plan
from trainer_core.versions import GROUPED_QUERIES, varlen_attn

NAME = "tafdil_packed"
# Requirements of the flash attention behind the kernel.
_KERNEL_TYPES = (torch.float16, torch.bfloat16)
_KERNEL_CAPABILITY = (8, 0)
_LARGEST_HEAD = 256


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Implements transformers' attention interface, (1, heads, T, size) each. Without a packed row it is transformers' SDPA.

    Args:
        options: `packed`, a `Packed`, and the options that transformers passes.
    """
    packed: Packed | None = options.pop("packed", None)
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    layer = module.layer_idx
    if packed.kept is not None:
        packed.kept[layer] = key.detach(), value.detach()
    if packed.behind is not None:
        assert packed.behind.kept is not None, "the batch before keeps its keys until this one is scored"
        key, value = (torch.cat(pair) for pair in zip(packed.behind.kept[layer], (key, value), strict=True))
    keys, values = (_gathered(tensor, packed.plan) for tensor in (key, value))
    attend = _by_kernel if kernel_takes(query) else _by_segment
    return attend(query, keys, values, packed.plan, options.get("scaling"))[None], None


def kernel_takes(query: Tensor) -> bool:
    """Whether the kernel supports these queries, (T, heads, size); otherwise the loop computes them."""
    size = query.shape[-1]
    return (
        query.is_cuda
        and _dtype(query) in _KERNEL_TYPES
        and size % 8 == 0
        and size <= _LARGEST_HEAD
        and torch.cuda.get_device_capability(query.device) >= _KERNEL_CAPABILITY
    )


def _dtype(query: Tensor) -> torch.dtype:
    """The dtype in which attention computes: autocast rounds SDPA's inputs, and the kernel's must be rounded here."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _by_kernel(query: Tensor, keys: Tensor, values: Tensor, plan: Plan, scale: float | None) -> Tensor:
    """(T, heads, size). Keys and values: (K, key heads, size)."""
    query, keys, values = (tensor.to(_dtype(query)) for tensor in (query, keys, values))
    window = (-1, 0)  # causal, aligned to the last key
    return varlen_attn(  # pyright: ignore[reportReturnType]  # a tuple only if more is requested
        query, keys, values, plan.queries, plan.keys, *plan.longest, scale=scale, window_size=window, **GROUPED_QUERIES
    )


def _by_segment(query: Tensor, keys: Tensor, values: Tensor, plan: Plan, scale: float | None) -> Tensor:
    """As `_by_kernel`."""
    groups = query.shape[1] // keys.shape[1]
    keys, values = (tensor.repeat_interleave(groups, dim=1) for tensor in (keys, values))
    found: list[Tensor] = []
    for own, seen in plan.pieces:
        q, k, v = (
            tensor[start:end].transpose(0, 1)[None] for tensor, (start, end) in ((query, own), (keys, seen), (values, seen))
        )
        mask = None
        if q.shape[2] != k.shape[2]:
            ones = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            mask = ones.tril(k.shape[2] - q.shape[2])
        found.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale))
    return torch.cat([one[0].transpose(0, 1) for one in found]) if found else query


def _gathered(source: Tensor, plan: Plan) -> Tensor:
    """Keys or values of tokens, (tokens, heads, size), in the plan's order: (K, heads, size)."""
    return source[plan.gather] if plan.uses is None else _Gather.apply(source, plan.gather, plan.uses)


class _Gather(torch.autograd.Function):
    """Indexing whose gradient adds up in a fixed order: on a GPU, PyTorch's own adds in any order."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, gather: Tensor, uses: Tensor) -> Tensor:
        ctx.save_for_backward(uses)
        return source[gather]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (uses,) = ctx.saved_tensors
        arrived = gradients[0]
        padded = torch.cat([arrived, arrived.new_zeros(1, *arrived.shape[1:])])
        return padded[uses].sum(dim=1), None, None


def install(backbone: Any) -> None:
    """Makes a model's attention layers support packed rows. Other rows are computed as before."""
    AttentionInterface.register(NAME, packed_attention)
    for layer in backbone.layers:
        attention = layer.self_attn
        # Copy the config: the model's own decides which masks are made, and is written to files.
        attention.config = copy.copy(attention.config)
        attention.config._attn_implementation = NAME
