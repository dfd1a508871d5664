"""Decides a file's layout once for all rows, from its first rows and the options that a person set."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from trainer_core.errors import DataInvalid, DataUnclear
from trainer_core.layouts import (
    alpaca,
    conversations,
    generations,
    helpsteer,
    hh_text,
    hosted,
    orca,
    own,
    pku,
    scored,
    sharegpt,
    shp,
    swift,
    two_answers,
    ultrafeedback,
)
from trainer_core.layouts.claims import Claim, Layout, Sample, named_columns, unclear
from trainer_core.layouts.forms import CONTEXT, TAKEN, Misfit, finish, is_absent, parsed
from trainer_core.layouts.words import field_of, is_answer
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_rules import Problem, Row
from trainer_core.wording import Message, say

PUBLISHED: tuple[Layout, ...] = (
    hosted.LAYOUT,
    pku.LAYOUT,
    helpsteer.LAYOUT,
    helpsteer.PREFERENCE,
    shp.LAYOUT,
    swift.LAYOUT,
    sharegpt.LAYOUT,
    alpaca.LAYOUT,
    orca.LAYOUT,
    generations.LAYOUT,
    hh_text.LAYOUT,
    ultrafeedback.LAYOUT,
    conversations.LAYOUT,
    scored.LAYOUT,
    two_answers.LAYOUT,
)
PUBLISHED_NAMES = frozenset(layout.name for layout in PUBLISHED)
# Layouts that use Tafdil's field names, which a map or a guess leads to.
_OF_OUR_NAMES = (own.LAYOUT, hh_text.LAYOUT, ultrafeedback.LAYOUT, conversations.LAYOUT, scored.LAYOUT, two_answers.LAYOUT)
_KINDS = (own.PAIRS, own.LABELLED)
_FIELDS = ("prompt", "chosen", "rejected", "completion", "label", "system", "history", "confidence")
OPTIONAL = frozenset({"system", "history", "confidence"})
"""Fields that rows need not have."""
_MAP_FIELDS = (*_FIELDS, "answer_1", "answer_2", "preferred")


@dataclass
class Reading:
    """How the rows of one file become rows in Tafdil's own format.

    Attributes:
        layout: `own`, one of `PUBLISHED`, `map`, or `names` (columns recognized by their names).
        mapping: Tafdil's fields, each with its column in the file.
        columns: the columns of the first rows.
        said: fields whose columns `map` names.
        json_columns: columns that hold messages as JSON text.
        read: columns that are read if a row has them.
        known: `read` and `columns` together.
        context: columns of `read` whose content goes before the prompt.
        seen: columns of `read` that rows have had so far.
    """

    layout: str
    claim: Claim
    mapping: dict[str, str]
    columns: tuple[str, ...]
    renames: dict[str, str] | None = None
    said: frozenset[str] = frozenset()
    json_columns: frozenset[str] = frozenset()
    read: frozenset[str] = field(init=False)
    known: frozenset[str] = field(init=False)
    context: frozenset[str] = field(init=False)
    seen: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        renames = self.renames or {}
        self.read = frozenset(self.mapping.values()) | {renames.get(name, name) for name in self.claim.used}
        self.known = self.read | frozenset(self.columns)
        self.context = frozenset(self.mapping[name] for name in CONTEXT if name in self.mapping)

    @property
    def is_own(self) -> bool:
        """Whether rows that already have Tafdil's format stay unchanged."""
        return self.layout == own.NAME and not self.json_columns

    def named(self, problem: Problem) -> Problem:
        """A problem that names the file's column instead of the field."""
        return replace(problem, field=self.mapping.get(problem.field, problem.field))

    def late(self, value: Row) -> Problem | None:
        """A column that the first rows do not have, and that would have been read, or asked for, if they had it."""
        for name in value:
            if name in self.known or is_absent(value[name]) or (ours := field_of(name)) is None:
                continue
            if (ours == "system" and ours not in self.said) or (self.layout == "names" and ours in self.mapping):
                return Problem(name, say("late_column", field=ours))
        return None

    def row(self, value: Row) -> Row:
        """A row in Tafdil's format, without guesses, plus the columns that are not read. Raises `Misfit`."""
        given = {name: cell for name, cell in value.items() if not is_absent(cell)}
        for name in self.json_columns:
            if isinstance(cell := given.get(name), str):
                messages = parsed(cell)
                if messages is None:
                    raise Misfit(name, say("no_json_messages"))
                given[name] = messages
        named = given if self.renames is None else _renamed(given, self.renames)
        # Columns that are not read now must not be read when the stored form is read again.
        others = {
            name: cell
            for name, cell in given.items()
            if name not in self.read and name not in TAKEN and field_of(name) != "system"
        }
        kept = {"confidence": named["confidence"]} if "confidence" in named else {}
        return others | kept | finish(self.claim.fields(named))


def decide(values: Iterable[Any], options: ReadingOptions) -> Reading:
    """How to read a file that begins with these rows.

    Raises `DataUnclear` if there are several ways to read it, and `DataInvalid` if the map names an unknown field or column.
    """
    rows = [
        {name: cell for name, cell in value.items() if not is_absent(cell)} for value in values if isinstance(value, dict)
    ]
    sample = Sample(row for row in rows if row)
    is_json = frozenset(name for name in sample.columns if sample.every(name, _is_json_text))
    sample = Sample({name: parsed(cell) if name in is_json else cell for name, cell in row.items()} for row in sample.rows)
    if options.map and not set(options.map) <= {"preferred"}:
        found = _by_map(sample, options, options.map)
    else:
        found = _published(sample, options) or _by_names(sample, options)
        if options.map and found.mapping.get("preferred") != options.map["preferred"]:
            found = _by_map(sample, options, options.map)
    found.json_columns = frozenset(is_json & found.read)
    found.said = frozenset(options.map or ())
    return found


def claimants(sample: Sample, options: ReadingOptions) -> list[tuple[Layout, Claim]]:
    """The layouts that claim a sample. Rows in Tafdil's own format have no other, whatever columns they have."""
    if claim := own.claims(sample, options):
        return [(own.LAYOUT, claim)]
    return [(layout, claim) for layout in PUBLISHED if (claim := layout.claims(sample, options))]


def _published(sample: Sample, options: ReadingOptions) -> Reading | None:
    claims = claimants(sample, options)
    if not claims:
        return None
    if len(claims) > 1:
        raise _ask_map(sample, "several_layouts", layouts=[layout.name for layout, _ in claims])
    layout, claim = claims[0]
    return Reading(layout.name, claim, claim.mapping, sample.columns)


def _by_map(sample: Sample, options: ReadingOptions, given: dict[str, str]) -> Reading:
    """The reading that a person asked for. Fields that the map omits are found by column name."""
    unknown = [name for name in given if name not in _MAP_FIELDS]
    if unknown:
        raise DataInvalid.at("map", say("map_field", names=named_columns(unknown), fields=_MAP_FIELDS))
    # What goes before the prompt may be empty in the first rows; `RowChecker` checks whether it comes later.
    absent = [column for name, column in given.items() if name not in OPTIONAL and column not in sample.columns]
    if absent:
        raise DataInvalid.at("map", no_column(absent, sample.columns))
    taken = set(given.values())
    mapping = {name: name for name in _MAP_FIELDS if name in sample.columns and name not in taken} | given
    candidates = _candidates(sample, set(given.values()))
    if len(candidates.get("system", ())) > 1 and "system" not in given:
        raise _ask_map(sample, "system_unclear", names=candidates["system"])
    for name, columns in candidates.items():
        if len(columns) == 1:
            mapping.setdefault(name, columns[0])
    mapping |= {name: name for name in CONTEXT if name not in mapping and name not in taken}
    found = _of_our_names(sample, options, mapping, "map")
    if found is None:
        lacking = [[name for name in kind if name not in mapping] for kind in _KINDS]
        need = [names for names in lacking if names]
        either = say("need.either", first=need[0], second=need[-1]) if len(need) > 1 else need[0]
        raise _ask_map(sample, "map_incomplete", need=either)
    return found


def _by_names(sample: Sample, options: ReadingOptions) -> Reading:
    """A file of unknown layout: read if each field has exactly one candidate column, otherwise a question."""
    candidates = _candidates(sample, set())
    kinds = [kind for kind in _KINDS if all(name in candidates for name in kind)]
    # Beside answers in columns of their own, the best and the worst are their numbers or letters.
    named = {columns[0] for columns in candidates.values()}
    has_answers = sum(name not in named and is_answer(name) for name in sample.columns) > 1
    is_clear = len(kinds) == 1 and not has_answers
    is_clear = is_clear and all(
        len(candidates[name]) == 1 for name in (*kinds[0], "system", "history") if name in candidates
    )
    if is_clear:
        mapping = {name: columns[0] for name, columns in candidates.items() if name in (*kinds[0], "system", "confidence")}
        mapping |= {name: name for name in CONTEXT if name not in mapping}
        found = _of_our_names(sample, options, mapping, "names")
        if found is not None:
            return found
    if len(sample.columns) >= 3 and not _is_only_ours(sample):
        raise _ask_map(sample, "map_unclear")
    # Something is missing from the rows; the row rules say what.
    claim = own.claim(sample)
    return Reading(own.NAME, claim, claim.mapping, sample.columns)


def _is_only_ours(sample: Sample) -> bool:
    return all(name in _FIELDS for name in sample.columns)


def _of_our_names(sample: Sample, options: ReadingOptions, mapping: dict[str, str], name: str) -> Reading | None:
    """The reading after renaming columns, if the result has a layout with Tafdil's field names."""
    inner = Sample(_renamed(row, mapping) for row in sample.rows)
    claims = [(layout, claim) for layout in _OF_OUR_NAMES if (claim := _claim(layout, inner, options, mapping))]
    if not claims:
        return None
    claim = claims[0][1]
    outer = {ours: mapping.get(column, column) for ours, column in claim.mapping.items()}
    outer |= {"confidence": mapping["confidence"]} if "confidence" in mapping else {}
    return Reading(name, claim, outer, sample.columns, mapping)


def _claim(layout: Layout, sample: Sample, options: ReadingOptions, mapping: dict[str, str]) -> Claim | None:
    """A layout's claim. Its question, if any, names the file's columns."""
    try:
        claim = layout.claims(sample, options)
    except DataUnclear as error:
        raise _outside(error, mapping) from None
    if claim is None:
        return None

    def fields(row: Row) -> Row:
        try:
            return claim.fields(row)
        except DataUnclear as error:
            raise _outside(error, mapping) from None

    return replace(claim, fields=fields)


def _outside(error: DataUnclear, mapping: dict[str, str]) -> DataUnclear:
    """A question about columns of our names, with the file's."""
    question = error.question
    assert question is not None
    columns = [mapping.get(name, name) for name in question.choices]
    (detail,) = error.details
    params = {name: value for name, value in detail.params.items() if name != "choices"}
    params |= {"column": mapping.get(params["column"], params["column"])} if "column" in params else {}
    params |= {"names": [mapping.get(name, name) for name in params["names"]]} if "names" in params else {}
    return unclear(question.about, detail.code or "", columns, question.guess, question.rows, **params)


def _candidates(sample: Sample, taken: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for column in sample.columns:
        if column not in taken and (name := column if column in _FIELDS else field_of(column)):
            found.setdefault(name, []).append(column)
    return found


def _ask_map(sample: Sample, code: str, **params: Any) -> DataUnclear:
    """The question for the columns of the fields.

    Args:
        code: the code of the sentence that says why.
        params: its values, besides the fields and the columns.
    """
    candidates = _candidates(sample, set())
    pairs = sum(name in candidates for name in own.PAIRS) >= sum(name in candidates for name in own.LABELLED)
    names = own.PAIRS if pairs else own.LABELLED
    guess = {name: candidates[name][0] for name in (*names, "system") if name in candidates}
    rows: list[Row] = []
    for row in sample.rows[:3]:
        try:
            rows.append(finish(_renamed(row, guess)))
        except Misfit:
            rows.append(_renamed(row, guess))
    return unclear("map", code, sample.columns, guess, rows, fields=list(names), **params)


def no_column(names: Iterable[str], columns: Iterable[str]) -> Message:
    """The sentence about columns that a map names and the file lacks, with the columns that it has."""
    return say("map_column", names=named_columns(names), columns=named_columns(columns))


def _renamed(row: Row, mapping: dict[str, str]) -> Row:
    return {ours: row[theirs] for ours, theirs in mapping.items() if theirs in row}


def _is_json_text(value: Any) -> bool:
    return isinstance(value, str) and parsed(value) is not None
