"""Checks, before a model loads, that the config's optimizer works on this machine."""

import torch
from torch import nn

from trainer_core.config import Optimizer, TrainingSettings
from trainer_core.errors import SpecInvalid
from trainer_core.wording import say

# bitsandbytes keeps the state of smaller weights in 32 bit.
_SIDE = 128


def check(settings: TrainingSettings) -> None:
    """Raises `SpecInvalid` if the optimizer needs a package or a device that this machine lacks."""
    optimizer = settings.optim
    if optimizer not in ("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"):
        return
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        check_paged(settings)
    try:
        works = _try(optimizer, "cuda" if has_gpu else "cpu")
    except Exception as error:  # a missing package, library or kernel can raise anything
        problem = f"{type(error).__name__}: {error}"
        raise SpecInvalid.at("optim", say("optim_broken", optim=optimizer, problem=problem)) from error
    if not works:
        raise SpecInvalid.at("optim", say("optim_does_nothing", optim=optimizer))


def check_paged(settings: TrainingSettings) -> None:
    """Raises `SpecInvalid` if the optimizer needs a GPU."""
    optimizer = settings.optim
    if optimizer in ("paged_adamw_8bit", "paged_adamw_32bit"):
        instead = ["adamw_8bit", "adamw_torch_fused"] if "8bit" in optimizer else ["adamw_torch_fused"]
        raise SpecInvalid.at("optim", say("optim_needs_gpu", optim=optimizer, instead=instead))


def _try(optimizer: Optimizer, device: str) -> bool:
    """Takes one step on one weight."""
    import bitsandbytes

    weight = nn.Parameter(torch.ones(_SIDE, _SIDE, device=device))
    weight.grad = torch.ones_like(weight)
    bits = 8 if "8bit" in optimizer else 32
    bitsandbytes.optim.AdamW([weight], lr=0.5, optim_bits=bits, is_paged=optimizer != "adamw_8bit").step()
    return bool((torch.isfinite(weight) & (weight < 1)).all())
