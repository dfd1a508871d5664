"""Whether the optimizer that a config names works on this machine; known before a model loads."""

import torch
from torch import nn

from trainer_core.config import Optimizer, TrainingSettings
from trainer_core.errors import Detail, SpecInvalid

# bitsandbytes keeps the state of smaller weights in 32 bit.
_SIDE = 128


def check(settings: TrainingSettings) -> None:
    """Raises `SpecInvalid` if the optimizer needs a package or a device that is not here."""
    optimizer = settings.optim
    if optimizer not in ("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"):
        return
    is_paged = optimizer != "adamw_8bit"
    has_gpu = torch.cuda.is_available()
    if is_paged and not has_gpu:
        instead = "adamw_8bit or adamw_torch_fused" if "8bit" in optimizer else "adamw_torch_fused"
        raise SpecInvalid(
            f"optim {optimizer!r} pages its state between a GPU and the host, and there is no GPU here; set optim to "
            f"{instead}",
            [Detail("optim", f"{optimizer!r} needs a GPU")],
        )
    try:
        works, reason = _try(optimizer, "cuda" if has_gpu else "cpu"), "it leaves a weight unchanged"
    except Exception as error:  # a missing package, library or kernel raises one of many things
        works, reason = False, f"{type(error).__name__}: {error}"
    if not works:
        raise SpecInvalid(
            f"optim {optimizer!r} is bitsandbytes', which does not work here ({reason}); set optim to adamw_torch_fused or "
            "adafactor, or install bitsandbytes for this device: pip install 'tafdil[quant]'",
            [Detail("optim", f"{optimizer!r} does not work on this machine")],
        )


def _try(optimizer: Optimizer, device: str) -> bool:
    """Takes one step on one weight."""
    import bitsandbytes

    weight = nn.Parameter(torch.ones(_SIDE, _SIDE, device=device))
    weight.grad = torch.ones_like(weight)
    bits = 8 if "8bit" in optimizer else 32
    bitsandbytes.optim.AdamW([weight], lr=0.5, optim_bits=bits, is_paged=optimizer != "adamw_8bit").step()
    return bool((torch.isfinite(weight) & (weight < 1)).all())
