"""The same losses and gradients in a fraction of the time and memory, below TRL's own trainers.

TRL asks its model for the log-probabilities of labelled tokens. This package answers only that question, in another way:
rows with a common beginning share it, padding is not computed, and the output layer sees answer positions only. The result
is exact: each token attends to the same tokens as before, so results differ by float rounding alone.

Call `accelerate`. The token ids of a batch decide what is shared. "Accelerating Direct Preference Optimization with Prefix
Sharing", arXiv:2410.20305, describes for pairs how a prompt computed once serves several answers.
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
