"""What the tests know of each method independently of our code: its loss from the paper, and TRL's trainer for it.

Each method has a file of its name, with:

- `CASES`: settings to test the loss with.
- `ROUNDING`: relative differences of the loss and of its gradients that float32 explains.
- `METRICS`: settings to test the formulas of `docs/metrics.md` with.
- `loss(settings, answers, rows)`: (), the mean over a batch in float64.
- `stock()`: TRL's trainer and config, and the options that name the method there.
- `BETA`: the default of `beta`.
- `METADATA`, `ARGUMENTS`: what the metadata file and `_get_method_specific_args` hold at the defaults, besides what
  every method has.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Answered:
    """Answers to prompts, (rows,) each: summed log-probabilities under the policy and the reference, and tokens."""

    logps: Tensor
    ref_logps: Tensor
    tokens: Tensor


def facts_of(method: str) -> Any:
    """The module of a method."""
    return import_module(f"tests.methods.{method}")
