"""Linear layers over a few rows on a CPU, as in every token of generation for a few prompts."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_MOST_ROWS = 8


class SmallBatches(TorchFunctionMode):
    """Computes products of a few rows with a large weight as the weight times a few columns, within this context.

    For two to eight rows the CPU libraries below torch read the weight several times; in this form they read it once. Two
    rows by Qwen's vocabulary take a quarter of the time (`python -m benchmarks.compare_latency`). A single row (it has its
    own path there), other devices and other types stay as they are. Results differ by rounding.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear and not kwargs and self._suits(*args[:2]):
            rows, weight = args[0], args[1]
            bias = args[2] if len(args) > 2 else None
            found = torch.mm(weight, rows.reshape(-1, rows.shape[-1]).t()).t().reshape(*rows.shape[:-1], len(weight))
            return found if bias is None else found + bias
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _suits(rows: torch.Tensor, weight: torch.Tensor) -> bool:
        is_plain = weight.device.type == "cpu" and rows.dtype == weight.dtype == torch.float32 and weight.dim() == 2
        return is_plain and 1 < rows.numel() // rows.shape[-1] <= _MOST_ROWS
