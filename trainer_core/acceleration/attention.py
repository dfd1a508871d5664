"""Attention over a packed row: each segment with what comes before it, and nothing else."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from trainer_core.acceleration.packing import Packed, Span

NAME = "tafdil_packed"


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, heads, T, size) each; without a packed row, its own SDPA.

    Args:
        options: `packed`, a `Packed`, and what transformers passes.
    """
    packed: Packed | None = options.pop("packed", None)
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    layer = module.layer_idx
    if packed.kept is not None:
        packed.kept[layer] = key.detach(), value.detach()
    earlier = packed.behind.kept[layer] if packed.behind and packed.behind.kept else (key, value)
    groups = module.num_key_value_groups
    found: list[Tensor] = []
    for segment in packed.segments:
        keys, values = (
            repeat_kv(_joined(of_before, segment.before, own, segment.span), groups)
            for of_before, own in zip(earlier, (key, value), strict=True)
        )
        start, end = segment.span
        found.append(
            scaled_dot_product_attention(
                query[:, :, start:end],
                keys,
                values,
                attn_mask=segment.mask(query.device) if segment.before else None,
                is_causal=not segment.before,
                dropout_p=options.get("dropout", 0.0),
                scale=options.get("scaling"),
            )
        )
    return torch.cat(found, dim=2).transpose(1, 2).contiguous(), None


def _joined(source: Tensor, before: tuple[Span, ...], own: Tensor, span: Span) -> Tensor:
    """Keys or values of the tokens before a segment and of its own, (1, heads, tokens, size)."""
    pieces = [source[:, :, start:end] for start, end in before]
    return torch.cat([*pieces, own[:, :, span[0] : span[1]]], dim=2)


def install(backbone: Any) -> None:
    """Lets a model's attention layers understand packed rows. What they do with others stays as it was."""
    AttentionInterface.register(NAME, packed_attention)
    for layer in backbone.layers:
        attention = layer.self_attn
        # A config of its own: the model's decides which masks are made, and goes into files.
        attention.config = copy.copy(attention.config)
        attention.config._attn_implementation = NAME
