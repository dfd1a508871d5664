"""The same losses and gradients in a fraction of the time and memory, below TRL's own trainers.

TRL asks its model for the log-probabilities of labelled tokens. This package answers that question in another way, and no
other question: rows that begin alike share what they begin with, nothing is computed for padding, and the output layer sees
answer positions only. All of it is exact: what a token attends to is the same, so results differ by float rounding alone.

The door is `accelerate`. What shares is decided by the token ids of a batch; that a prompt computed once serves several
answers is described for pairs in "Accelerating Direct Preference Optimization with Prefix Sharing", arXiv:2410.20305.
"""

from trainer_core.acceleration.forward import (
    Behind,
    Savings,
    accelerate,
    causal_of,
    is_accelerated,
    refusal,
    release,
    states_at,
)

__all__ = ["Behind", "Savings", "accelerate", "causal_of", "is_accelerated", "refusal", "release", "states_at"]
