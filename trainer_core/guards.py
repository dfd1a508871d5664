"""Signs that a run is going wrong, read from its metric history alone, so that a resumed run sees them as well.

Torch-free. A history is transformers' `log_history`: one dict per log entry, with `step`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from trainer_core.wording import Message, say

History = Sequence[dict[str, Any]]

_MAX_NLL_RISE = 0.5
_MAX_LOGPS_FALL = 0.5
_LOG_ENTRIES = 5
_MAX_REPETITION = 0.5
_MAX_LENGTH_RATIO = 2.0
_MIN_TOKENS = 4.0
_STILL_ENTRIES = 3
# One answer of two or three, two of four to seven: never a single answer of many. docs/metrics.md has what these rest on.
_MAX_LANGUAGE_FALL = 0.25
# Half of what makes the effect `collapsed`. A name in Latin letters stays below it.
_MAX_LEAK_RISE = 0.1


@dataclass(frozen=True)
class Sign:
    """A warning: its code, and the numbers that show it."""

    code: str
    message: Message


def signs(history: History) -> Iterator[Sign]:
    """Every sign in the history so far."""
    yield from _chosen_collapse(history)
    yield from _repetition(history)
    yield from _length_drift(history)
    yield from _language_drift(history)
    yield from _script_leak(history)
    yield from _no_gradient(history)


def _series(history: History, name: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[name]) for entry in history if isinstance(entry.get(name), int | float)]


def _chosen_collapse(history: History) -> Iterator[Sign]:
    """The wanted answers become unlikely. Margins may still rise, because the unwanted ones fall faster."""
    evaluated = _series(history, "eval_chosen_nll")
    if len(evaluated) > 1:
        (_, first), (step, last) = evaluated[0], evaluated[-1]
        if last - first > _MAX_NLL_RISE:
            yield Sign(
                "chosen_collapse",
                say("chosen_collapse", step=step, last=round(last, 2), first=round(first, 2)),
            )
        return
    logged = _series(history, "logps/chosen")
    if len(logged) >= 2 * _LOG_ENTRIES:
        first = median(value for _, value in logged[:_LOG_ENTRIES])
        last = median(value for _, value in logged[-_LOG_ENTRIES:])
        if last < first - _MAX_LOGPS_FALL * abs(first):
            yield Sign(
                "chosen_collapse",
                say("chosen_collapse_logged", step=logged[-1][0], first=round(first, 1), last=round(last, 1)),
            )


def _repetition(history: History) -> Iterator[Sign]:
    series = _series(history, "eval_sample_repetition")
    if series and series[-1][1] > _MAX_REPETITION and (len(series) == 1 or series[-1][1] > series[0][1]):
        step, share = series[-1]
        yield Sign("repetition", say("repetition", step=step, percent=round(100 * share)))


def _length_drift(history: History) -> Iterator[Sign]:
    series = _series(history, "eval_sample_tokens")
    if len(series) < 2:
        return
    (_, first), (step, last) = series[0], series[-1]
    ratio = max(last, _MIN_TOKENS) / max(first, _MIN_TOKENS)
    if not 1 / _MAX_LENGTH_RATIO < ratio < _MAX_LENGTH_RATIO:
        yield Sign(
            "length_drift",
            say("length_drift", step=step, last=round(last), first=round(first)),
        )


def _language_drift(history: History) -> Iterator[Sign]:
    """Fewer answers in their prompt's language than at the first evaluation."""
    series = _series(history, "eval_sample_in_language")
    if series and series[0][1] - series[-1][1] > _MAX_LANGUAGE_FALL:
        (_, first), (step, last) = series[0], series[-1]
        yield Sign("language_drift", say("language_drift", step=step, last=round(100 * last), first=round(100 * first)))


def _script_leak(history: History) -> Iterator[Sign]:
    """More letters in scripts that the prompts do not use than at the first evaluation."""
    series = _series(history, "eval_sample_script_leak")
    if series and series[-1][1] - series[0][1] > _MAX_LEAK_RISE:
        (_, first), (step, last) = series[0], series[-1]
        yield Sign("script_leak", say("script_leak", step=step, last=round(100 * last), first=round(100 * first)))


def _no_gradient(history: History) -> Iterator[Sign]:
    """The model learns nothing: every trained weight has a zero gradient."""
    last = _series(history, "grad_norm")[-_STILL_ENTRIES:]
    if len(last) == _STILL_ENTRIES and all(norm == 0 for _, norm in last):
        steps = [step for step, _ in last]
        yield Sign("no_gradient", say("no_gradient", step=steps[-1], steps=steps))
