"""A verdict over many prompts: both models answer prompts that the run did not train on, and the answers are counted.

A prompt counts as

`broken`: the trained model's answer repeats itself, is in a foreign script, or is far too long or too short;
`tie`: both answers are the same;
`better`, `worse`: the trained model's implicit reward prefers its own answer, or the reference's.

Rewards are the trained model's own judgement and like what it likes to say, so a broken answer is never better, however much
the reward prefers it. Torch-free: rows and comparisons in, counts out.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from trainer_core import mixing
from trainer_core.config import PreferenceConfig
from trainer_core.errors import DataInvalid
from trainer_core.row_names import AS_NUMBERED, RowNames
from trainer_core.row_rules import Row, comparable, text_of
from trainer_core.wording import say

Outcome = Literal["better", "tie", "worse", "broken"]
OUTCOMES: tuple[Outcome, ...] = ("better", "tie", "worse", "broken")
MOST_PROMPTS = 200
"""At most this many prompts are asked, and a run records at most this many."""
# 95 % of a normal distribution lies within this many standard deviations.
_DEVIATIONS = 1.959964


class Compared(Protocol):
    """What is read from a `Comparison`, whose module needs torch."""

    @property
    def trained_response(self) -> str: ...
    @property
    def reference_response(self) -> str: ...
    @property
    def texts_differ(self) -> bool: ...
    @property
    def margin(self) -> float: ...
    @property
    def flags(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt with the number of its row, and the wanted answers of the rows that have it.

    Attributes:
        name: the row as people know it: its line, or with several datasets `formal.jsonl:12`.
    """

    row: int
    prompt: Any
    wanted: tuple[str, ...]
    name: int | str = 0


def prompts_of(rows: Sequence[Row], names: RowNames = AS_NUMBERED) -> list[HeldOutPrompt]:
    """The distinct prompts of rows, each with the number of its first row."""
    found: dict[str, HeldOutPrompt] = {}
    for row in rows:
        key = comparable(row["prompt"])
        known = found.setdefault(key, HeldOutPrompt(row["row"], row["prompt"], (), names.short(row["row"])))
        answer = row.get("chosen", row["completion"] if row.get("label") else None)
        if answer is not None:
            found[key] = replace(known, wanted=(*known.wanted, text_of(answer)))
    return list(found.values())


def read(config: PreferenceConfig, numbers: Sequence[int] | None) -> list[HeldOutPrompt]:
    """The held-out prompts of a run, read again from its files.

    Args:
        numbers: the row numbers that the run recorded; None for runs of earlier versions, which recorded none. Their
            validation data are known if they have a file or a part of their own.

    Raises:
        DataInvalid: no held-out prompt is known, or the files have changed.
    """
    found = mixing.read(config)
    rows = found.validation or ([] if numbers is None else found.train)
    prompts = prompts_of(rows, found.names)
    if numbers is not None:
        prompts = _recorded(prompts, rows, numbers, found.names)
    if not prompts:
        raise DataInvalid(say("held_out_unknown"))
    return prompts


def _recorded(
    prompts: Sequence[HeldOutPrompt], rows: Sequence[Row], numbers: Sequence[int], names: RowNames
) -> list[HeldOutPrompt]:
    """The prompts of the rows with these numbers, in their order. A row need not be the first of its prompt in the file."""
    known = {comparable(each.prompt): each for each in prompts}
    prompt_of = {row["row"]: comparable(row["prompt"]) for row in rows}
    found: dict[str, HeldOutPrompt] = {}
    for number in numbers:
        if key := prompt_of.get(number):
            found.setdefault(key, replace(known[key], row=number, name=names.short(number)))
    return list(found.values())


def outcome(comparison: Compared) -> Outcome:
    """What one comparison counts as. A reward that is not finite prefers nothing."""
    if comparison.flags:
        return "broken"
    if not comparison.texts_differ or not comparison.margin or not math.isfinite(comparison.margin):
        return "tie"
    return "better" if comparison.margin > 0 else "worse"


def answer(
    prompts: Sequence[HeldOutPrompt],
    compare: Callable[[HeldOutPrompt], Compared],
) -> Iterator[dict[str, Any]]:
    """Asks one prompt after the other. Yields the result so far after each; the last one is complete."""
    counts: Counter[str] = Counter()
    answers: list[dict[str, Any]] = []
    for each in prompts:
        found = compare(each)
        verdict = outcome(found)
        counts[verdict] += 1
        answers.append(
            {
                "row": each.name,
                "prompt": each.prompt,
                "trained_model_response": found.trained_response,
                "reference_model_response": found.reference_response,
                "margin": finite(found.margin),
                "flags": list(found.flags),
                "outcome": verdict,
            }
        )
        yield {**counted(counts), "asked": len(prompts), "answers": list(answers)}


def finite(value: float) -> float | None:
    """A number for JSON; None if it is not finite."""
    return value if math.isfinite(value) else None


def counted(counts: Counter[str]) -> dict[str, Any]:
    """The counts of outcomes; `share` counts a tie as a half and has its 95 % interval."""
    prompts = sum(counts[name] for name in OUTCOMES)
    share = (counts["better"] + counts["tie"] / 2) / prompts
    low, high = wilson(share, prompts)
    return {
        "prompts": prompts,
        "better": counts["better"],
        "ties": counts["tie"],
        "worse": counts["worse"],
        "broken": counts["broken"],
        "share": share,
        "low": low,
        "high": high,
    }


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` prompts. It stays within 0 and 1, also for few prompts.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953. With ties it is too wide rather than too narrow: they vary less.
    """
    z = _DEVIATIONS**2 / count
    centre = (share + z / 2) / (1 + z)
    reach = _DEVIATIONS * math.sqrt(share * (1 - share) / count + z / (4 * count)) / (1 + z)
    return max(0.0, centre - reach), min(1.0, centre + reach)
