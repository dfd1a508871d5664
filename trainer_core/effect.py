"""What a run did to its model: `changed`, `hardly_changed` or `collapsed`. Torch-free: numbers in, a verdict out.

The bounds come from measured runs of the shipped models; `docs/metrics.md` has the formulas, the bounds and the runs.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, variance
from typing import Any, Literal

from trainer_core.wording import Message, rounded, say

Verdict = Literal["changed", "hardly_changed", "collapsed"]
RowsFrom = Literal["validation", "held_back", "training"]

# 95 % of a normal distribution lies within this many standard errors of its mean.
_STANDARD_ERRORS = 1.96
# Below this, length ratios mean nothing: one more word can double the length.
_MIN_TOKENS = 4.0


@dataclass(frozen=True)
class Bounds:
    """Bounds between the verdicts. A value equal to a bound has not passed it."""

    hardly_kl: float = 3.2e-5
    """Below it the model hardly changed; nats per token."""
    collapsed_kl: float = 6.8
    """Above it the model collapsed; nats per token."""
    hardly_shift: float = 1.8e-3
    """Like `hardly_kl`, for the shift; used if no KL divergence could be measured. Nats per token."""
    collapsed_shift: float = 4.7
    repetition: float = 0.5
    """Share of the answers' runs of four tokens, above the share before the run."""
    foreign_script: float = 0.2
    """Share of letters."""
    length_ratio: float = 3.0
    """Longer or shorter by this factor."""


BOUNDS = Bounds()
HALF_BOUNDS = replace(BOUNDS, hardly_kl=3.2e-4, hardly_shift=5.6e-3)
"""For bf16 and fp16, where rounding alone moves even an untrained model."""


@dataclass(frozen=True)
class Margin:
    """A mean reward margin and its 95 % interval, whose ends are None if there are too few rows."""

    mean: float
    low: float | None
    high: float | None


def paired_margin(margins: Sequence[float]) -> Margin | None:
    """The mean margin of pairs. The interval assumes that the mean is normally distributed."""
    if not margins or not all(map(math.isfinite, margins)):
        return None
    error = math.sqrt(variance(margins) / len(margins)) if len(margins) > 1 else None
    return _margin(fmean(margins), error)


def unpaired_margin(desirable: Sequence[float], undesirable: Sequence[float]) -> Margin | None:
    """The difference between the mean rewards of two kinds of rows, with Welch's standard error; None if one has no rows."""
    if not desirable or not undesirable or not all(map(math.isfinite, [*desirable, *undesirable])):
        return None
    error = None
    if len(desirable) > 1 and len(undesirable) > 1:
        error = math.sqrt(variance(desirable) / len(desirable) + variance(undesirable) / len(undesirable))
    return _margin(fmean(desirable) - fmean(undesirable), error)


def _margin(mean: float, error: float | None) -> Margin:
    if error is None:
        return Margin(mean, None, None)
    return Margin(mean, mean - _STANDARD_ERRORS * error, mean + _STANDARD_ERRORS * error)


@dataclass(frozen=True)
class Answers:
    """One model's greedy answers to some prompts: their texts, lengths in tokens and shares of repetition.

    An empty answer has 0 tokens.
    """

    texts: Sequence[str]
    tokens: Sequence[int]
    repetition: Sequence[float]


@dataclass(frozen=True)
class Samples:
    """The answers after the run, compared with those before it.

    Attributes:
        prompts: how many were answered.
        differing: share of the answers whose text changed.
        repetition, repetition_before: mean share of an answer's runs of four tokens that occurred in it before.
        foreign_script: share of the letters in scripts that neither the prompts, nor the answers before, nor the wanted
            answers of the rows use.
        length_ratio: mean length in tokens, divided by that of the answers before or of the wanted answers, whichever is
            nearer; 1 if it lies between them; 0 if all answers are empty and others were expected.
    """

    prompts: int
    differing: float
    repetition: float
    repetition_before: float
    foreign_script: float
    length_ratio: float


def compared(prompts: Sequence[str], before: Answers, after: Answers, wanted: Answers) -> Samples:
    """Compares the answers to at least one prompt. `wanted` are the answers that the rows teach; there may be none."""
    known = _scripts_of([*prompts, *before.texts, *wanted.texts])
    found = _scripts_of(after.texts)
    foreign = sum(count for script, count in found.items() if script not in known)
    return Samples(
        prompts=len(prompts),
        differing=fmean(one != other for one, other in zip(before.texts, after.texts, strict=True)),
        repetition=fmean(after.repetition),
        repetition_before=fmean(before.repetition),
        foreign_script=foreign / max(1, found.total()),
        length_ratio=_length_ratio(after.tokens, [before.tokens, wanted.tokens]),
    )


def _length_ratio(tokens: Sequence[int], expected: Sequence[Sequence[int]]) -> float:
    if not any(tokens) and all(any(one) for one in expected if one):
        return 0.0
    means = [max(_MIN_TOKENS, fmean(one)) for one in expected if one]
    mean = max(_MIN_TOKENS, fmean(tokens))
    return mean / min(max(mean, min(means)), max(means))


def _scripts_of(texts: Sequence[str]) -> Counter[str]:
    return sum(map(scripts, texts), Counter[str]())


def scripts(text: str) -> Counter[str]:
    """Counts the letters of a text by script. U+FFFD, for bytes that are not a character, counts as a script of its own."""
    return Counter(_script(letter) for letter in text if unicodedata.category(letter)[0] == "L" or letter == "\ufffd")


def _script(letter: str) -> str:
    # Unicode names begin with the script: ARABIC LETTER BEH, CJK UNIFIED IDEOGRAPH-9F8D.
    return unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0]


@dataclass(frozen=True)
class Evidence:
    """What a verdict is based on. Numbers that could not be measured are None; those of a collapsed model may not be finite.

    "Before" is the model before the run: the reference, unless the config names another one.

    Attributes:
        rows_from, rows: which rows were measured, and how many of them.
        mean_kl: KL(model ‖ model before) per token of the rows' answers, in nats; None if no copy of the latter was kept.
        shift: mean of |log π(y|x) − log π_before(y|x)| per token of the rows' answers, in nats.
        margin: the held-out reward margin.
        samples: answers to some of the rows' prompts.
    """

    rows_from: RowsFrom
    rows: int
    mean_kl: float | None
    shift: float
    margin: Margin | None
    samples: Samples | None


@dataclass(frozen=True)
class Effect:
    """A verdict and its evidence. `decided_by` names the numbers that passed a bound; it is empty for `changed`."""

    verdict: Verdict
    decided_by: tuple[str, ...]
    evidence: Evidence

    def as_dict(self) -> dict[str, Any]:
        """The evidence for JSON: numbers that are not finite become None."""
        return {**_finite(asdict(self.evidence)), "decided_by": list(self.decided_by)}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def judge(evidence: Evidence, bounds: Bounds = BOUNDS) -> Effect:
    """Judges the evidence. A model that hardly moved never counts as collapsed, whatever its answers look like."""
    if evidence.mean_kl is None:
        name, moved, hardly, most = "shift", evidence.shift, bounds.hardly_shift, bounds.collapsed_shift
    else:
        name, moved, hardly, most = "mean_kl", evidence.mean_kl, bounds.hardly_kl, bounds.collapsed_kl
    broken = tuple(name for name in ("mean_kl", "shift") if not math.isfinite(getattr(evidence, name) or 0.0))
    if broken:
        return Effect("collapsed", broken, evidence)
    if moved < hardly:
        return Effect("hardly_changed", (name,), evidence)
    passed = [name] if moved > most else []
    if evidence.samples:
        passed += signs(evidence.samples, bounds)
    return Effect("collapsed" if passed else "changed", tuple(passed), evidence)


def signs(samples: Samples, bounds: Bounds = BOUNDS) -> list[str]:
    """Names of the signs in the answers that passed their bounds."""
    found = {
        "repetition": samples.repetition - samples.repetition_before > bounds.repetition,
        "foreign_script": samples.foreign_script > bounds.foreign_script,
        "length_ratio": not 1 / bounds.length_ratio <= samples.length_ratio <= bounds.length_ratio,
    }
    return [name for name, has_passed in found.items() if has_passed]


def describe(verdict: Verdict, evidence: dict[str, Any]) -> Message:
    """The verdict in words, with the numbers that decided it. `evidence` comes from `Effect.as_dict`."""
    return say(f"effect.{verdict}", reasons=[_reason(name, evidence) for name in evidence["decided_by"]])


def _reason(name: str, evidence: dict[str, Any]) -> Message:
    samples = evidence["samples"] or {}
    if name == "repetition":
        return say("effect_repetition", percent=_percent(samples[name]), before=_percent(samples["repetition_before"]))
    if name == "foreign_script":
        return say("effect_foreign_script", percent=_percent(samples[name]))
    if name == "length_ratio":
        ratio = rounded(samples[name], 2)
        return say("effect_length_ratio", ratio=ratio) if ratio else say("effect_empty")
    is_kl, value = name == "mean_kl", evidence[name]
    if value is None:
        return say("effect_kl_not_finite" if is_kl else "effect_shift_not_finite")
    return say("effect_kl" if is_kl else "effect_shift", value=rounded(value, 2))


def _percent(share: float) -> int:
    return round(100 * share)
