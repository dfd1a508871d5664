"""Signs that a training goes wrong, read from its metric history alone, so that a resumed run sees them as well.

Torch-free. A history is transformers' `log_history`: one dict a log entry, with `step`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

History = Sequence[dict[str, Any]]

_MAX_NLL_RISE = 0.5
_MAX_LOGPS_FALL = 0.5
_LOG_ENTRIES = 5
_MAX_REPETITION = 0.5
_MAX_LENGTH_RATIO = 2.0
_MIN_TOKENS = 4.0
_STILL_ENTRIES = 3


@dataclass(frozen=True)
class Sign:
    """A warning: its code, and the numbers that show it."""

    code: str
    message: str


def signs(history: History) -> Iterator[Sign]:
    """Every sign that the history shows now."""
    yield from _chosen_collapse(history)
    yield from _repetition(history)
    yield from _length_drift(history)
    yield from _no_gradient(history)


def _series(history: History, name: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[name]) for entry in history if isinstance(entry.get(name), int | float)]


def _chosen_collapse(history: History) -> Iterator[Sign]:
    """The wanted answers become unlikely: margins may still rise, because the unwanted ones fall faster."""
    evaluated = _series(history, "eval_chosen_nll")
    if len(evaluated) > 1:
        (_, first), (step, last) = evaluated[0], evaluated[-1]
        if last - first > _MAX_NLL_RISE:
            yield Sign(
                "chosen_collapse",
                f"at step {step} the chosen answers cost {last:.2f} nats per token, up from {first:.2f}: the model is "
                "unlearning them. Lower learning_rate, raise beta, or use CPO with a larger cpo_alpha.",
            )
        return
    logged = _series(history, "logps/chosen")
    if len(logged) >= 2 * _LOG_ENTRIES:
        first = median(value for _, value in logged[:_LOG_ENTRIES])
        last = median(value for _, value in logged[-_LOG_ENTRIES:])
        if last < first - _MAX_LOGPS_FALL * abs(first):
            yield Sign(
                "chosen_collapse",
                f"by step {logged[-1][0]} the chosen answers' log-probability fell from {first:.1f} to {last:.1f} nats: the "
                "model is unlearning them. Lower learning_rate, raise beta, or use CPO with a larger cpo_alpha.",
            )


def _repetition(history: History) -> Iterator[Sign]:
    series = _series(history, "eval_sample_repetition")
    if series and series[-1][1] > _MAX_REPETITION and (len(series) == 1 or series[-1][1] > series[0][1]):
        step, share = series[-1]
        yield Sign("repetition", f"at step {step}, {share:.0%} of what the samples say repeats what they said before")


def _length_drift(history: History) -> Iterator[Sign]:
    series = _series(history, "eval_sample_tokens")
    if len(series) < 2:
        return
    (_, first), (step, last) = series[0], series[-1]
    ratio = max(last, _MIN_TOKENS) / max(first, _MIN_TOKENS)
    if not 1 / _MAX_LENGTH_RATIO < ratio < _MAX_LENGTH_RATIO:
        yield Sign(
            "length_drift",
            f"at step {step} the samples have {last:.0f} tokens, {first:.0f} before: the model may learn length alone",
        )


def _no_gradient(history: History) -> Iterator[Sign]:
    """The model learns nothing: the loss is flat in every weight that trains."""
    last = _series(history, "grad_norm")[-_STILL_ENTRIES:]
    if len(last) == _STILL_ENTRIES and all(norm == 0 for _, norm in last):
        steps = ", ".join(str(step) for step, _ in last)
        yield Sign(
            "no_gradient",
            f"at step {last[-1][0]} the gradient is exactly 0, as at all of the logged steps {steps}: the model learns "
            "nothing. In the dry run, look at the rows as the model sees them: answers that are equal after a cut "
            "(max_length) give no gradient. With CPO's hinge loss, or a large beta, the loss may also be at its minimum: "
            "lower beta.",
        )
