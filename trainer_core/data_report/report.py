"""The report about a file of preference rows: made in one pass over the file and one over a sample, as JSON.

A report is the same for the same rows. `VERSION` rises whenever the same rows would give another report.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trainer_core.counter_sets import Pair
from trainer_core.data_report import duplicates, shown
from trainer_core.data_report.findings import findings
from trainer_core.data_report.judging import judge
from trainer_core.data_report.languages import language_of
from trainer_core.data_report.rows_kept import (
    MEASURED_ROWS,
    SAMPLED_ROWS,
    SEED,
    Numbers,
    Reservoir,
    Sampled,
    Single,
    numbers_of,
)
from trainer_core.data_report.sides import Sides, variety_of
from trainer_core.data_report.spelling import Spellings
from trainer_core.data_report.tokens import Vocabulary, tokens_of
from trainer_core.errors import DataInvalid
from trainer_core.reading_options import AS_IT_IS, ReadingOptions
from trainer_core.row_rules import Row, comparable, text_of
from trainer_core.rows import check_file
from trainer_core.traits import seen
from trainer_core.wording import say

VERSION = 2
_SUMMED_ROWS = 4000


class Collector:
    """Takes checked rows as they pass, then makes the report."""

    def __init__(self, *, measured_rows: int = MEASURED_ROWS, sampled_rows: int = SAMPLED_ROWS) -> None:
        self._numbers: Reservoir[Numbers] = Reservoir(measured_rows)
        self._sample: Reservoir[Sampled] = Reservoir(sampled_rows, SEED + 1)
        self._sides = Sides()
        self._repeats = duplicates.Repeats()

    def add(self, row: Row, line: int) -> None:
        """Takes one row in Tafdil's format."""
        prompt, variety = text_of(row["prompt"]), variety_of(row)
        if "chosen" in row:
            own: Pair | Single = Pair(prompt, text_of(row["chosen"]), text_of(row["rejected"]))
        else:
            own = Single(prompt, text_of(row["completion"]), row["label"])
        key = hash(comparable(row["prompt"]))
        self._repeats.add(line, row)
        place = self._numbers.place()
        if place is not None:
            if place == len(self._numbers.kept):
                _count(self._sides, own, variety)
            self._numbers.put(place, numbers_of(own, key))
        place = self._sample.place()
        if place is not None:
            self._sample.put(place, Sampled(line, key, own, variety))

    def report(self, vocabulary: Vocabulary | None = None, *, near: bool = True) -> dict[str, Any]:
        """The report. Takes as much time again as the pass, for a file as large as the sample.

        Args:
            near: also look for rows that are nearly the same.

        Raises:
            DataInvalid: there were no rows.
        """
        if not self._numbers.kept:
            raise DataInvalid(say("no_rows"))
        sample = sorted(self._sample.kept, key=lambda each: each.line)
        verdict = judge(self._numbers.kept, sample)
        languages, spellings = _read(sample)
        found: dict[str, Any] = {
            "version": VERSION,
            "kind": "pairs" if sample and isinstance(sample[0].row, Pair) else "kto",
            "rows": self._numbers.seen,
            "measured_rows": len(self._numbers.kept),
            "sampled_rows": len(sample),
            "prompts": self._repeats.distinct_prompts,
            "most_rows_of_a_prompt": self._repeats.most_rows_of_a_prompt,
            "shortcuts": shown.shortcuts(verdict, sample, self._numbers.seen),
            **self._kept_sides(sample).as_dict(),
            "languages": languages,
            "spellings": spellings,
            "duplicates": {**self._repeats.as_dict(), "near": duplicates.near(sample if near else [])},
            "tokens": tokens_of(sample, vocabulary) if vocabulary else None,
        }
        return {**found, "findings": findings(found)}

    def _kept_sides(self, sample: Sequence[Sampled]) -> Sides:
        """The texts of all rows; of the sample, if the file has more rows than are measured."""
        if self._numbers.seen == len(self._numbers.kept):
            return self._sides
        sides = Sides()
        for each in sample:
            _count(sides, each.row, each.variety)
        return sides


def _count(sides: Sides, row: Pair | Single, variety: str | None) -> None:
    for side, text in {**_answers(row), "prompt": row.prompt}.items():
        sides.add(side, variety, seen(text))


def _answers(row: Pair | Single) -> dict[str, str]:
    """The answers of a row by side."""
    if isinstance(row, Pair):
        return {"chosen": row.chosen, "rejected": row.rejected}
    return {"desirable" if row.label else "undesirable": row.completion}


def report_of_rows(rows: Iterable[Row], vocabulary: Vocabulary | None = None) -> dict[str, Any]:
    """The report about checked rows. Those that have their line as `row` keep it."""
    collector = Collector()
    for place, row in enumerate(rows, start=1):
        collector.add(row, row.get("row", place))
    return collector.report(vocabulary)


def report_of_file(path: Path, vocabulary: Vocabulary | None = None, options: ReadingOptions = AS_IT_IS) -> dict[str, Any]:
    """The report about the training rows of a file. Raises `DataInvalid` and `DataUnclear`, as reading the file does."""
    collector = Collector()
    check_file(path, lambda part, row, line: collector.add(row, line) if part == "train" else None, options)
    return collector.report(vocabulary)


def summary_of_rows(rows: Sequence[Row], vocabulary: Vocabulary | None = None) -> dict[str, Any]:
    """The strongest findings about checked rows, from a seeded sample of them that bounds the time to a few seconds.

    Returns:
        `rows`, `sampled_rows`, `shortcuts` (those named, without examples), `findings` and `tokens`, as in a report.
    """
    chosen = sorted(random.Random(SEED).sample(range(len(rows)), min(len(rows), _SUMMED_ROWS)))
    collector = Collector()
    for place in chosen:
        collector.add(rows[place], place + 1)
    found = collector.report(vocabulary, near=False)
    named = [{name: part for name, part in each.items() if name != "examples"} for each in found["shortcuts"]["named"]]
    shortcuts = {
        **{name: found["shortcuts"][name] for name in ("note", "none", "smallest_named", "more_named")},
        "named": named,
    }
    kept = {name: found[name] for name in ("version", "kind", "sampled_rows", "findings", "tokens")}
    return {"rows": len(rows), "shortcuts": shortcuts, **kept}


def _read(sample: Sequence[Sampled]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Languages and spellings of the sample."""
    languages: dict[str, Counter[str]] = {}
    spellings = Spellings()
    in_another = 0
    words: Counter[str] = Counter()
    for each in sample:
        asked = language_of(seen(each.row.prompt))
        languages.setdefault("prompt", Counter())[asked] += 1
        for side, answer in _answers(each.row).items():
            text = seen(answer)
            language = language_of(text)
            languages.setdefault(side, Counter())[language] += 1
            in_another += language != asked and not {asked, language} & {"none", "unknown"}
            spellings.add(side, text)
            words[side] += len(text.words)
    unusual = spellings.unusual()
    return (
        {
            "sides": {side: dict(counts.most_common(8)) for side, counts in languages.items()},
            "answers": sum(counts.total() for side, counts in languages.items() if side != "prompt"),
            "answers_in_another_language": in_another,
        },
        {
            "words": dict(words),
            "unusual": {variant: dict(counts) for variant, counts in unusual.items()},
            "examples": {variant: [each._asdict() for each in found] for variant, found in spellings.examples().items()},
        },
    )
