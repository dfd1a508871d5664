"""Rows as token ids: tokenised once, limited in length, and checked for a remaining training signal.

Knows rows, the renderer and the length limits. Knows nothing of models, losses or order.
"""

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any

from trainer_core.chat_template import TemplateFault
from trainer_core.errors import DataInvalid, DataOverlong
from trainer_core.file_cache import FileCache
from trainer_core.row_names import AS_NUMBERED, RowNames
from trainer_core.row_rules import Row
from trainer_core.row_signal import Contradictions, Findings, loss_of_signal, note_text
from trainer_core.rows import MAX_ERRORS
from trainer_core.tokens import Encoded, Renderer, Texts
from trainer_core.wording import Message, say

if TYPE_CHECKING:
    from trainer_core.config import TrainingSettings

# Rows to tokenise at once: enough for every core, few enough for memory.
_ROWS_AT_ONCE = 1000
# Version of the rules that turn rows into ids; rows cached under another version are tokenised again.
_RULES = 2


@dataclass
class TokenReport:
    """The rows' lengths, the effect of the limits, and what was found in the rows. Row numbers are those of `names`.

    `prompt_tokens` and `answer_tokens` are lengths before anything was cut.
    """

    rows: int = 0
    total_tokens: int = 0
    prompt_tokens: list[int] = field(default_factory=list)
    answer_tokens: list[int] = field(default_factory=list)
    prompts_cut: int = 0
    completions_cut: int = 0
    rows_cut: list[int] = field(default_factory=list)
    rows_dropped: list[int] = field(default_factory=list)
    """Dropped by `on_overlong`; `findings` has the rows that were dropped for having no training signal."""
    findings: Findings = field(default_factory=Findings)
    names: RowNames = field(default=AS_NUMBERED, repr=False, compare=False)

    def as_dict(self, shown_rows: int = 20) -> dict[str, Any]:
        """The report in JSON. Rows are named by line, or with several datasets as `formal.jsonl:12`."""
        return {
            "rows": self.rows,
            "total_tokens": self.total_tokens,
            "prompt_tokens": _spread(self.prompt_tokens),
            "answer_tokens": _spread(self.answer_tokens),
            "prompts_cut": self.prompts_cut,
            "completions_cut": self.completions_cut,
            "first_rows_cut": [self.names.short(number) for number in self.rows_cut[:shown_rows]],
            "rows_dropped": len(self.rows_dropped),
            "first_rows_dropped": [self.names.short(number) for number in self.rows_dropped[:shown_rows]],
            "findings": self.findings.as_list(shown_rows, self.names),
        }


def _spread(lengths: Sequence[int]) -> dict[str, int]:
    """Median, 95th percentile and largest, each a length that occurs."""
    ordered = sorted(lengths)
    last = len(ordered) - 1
    return {"median": ordered[last // 2], "p95": ordered[round(last * 0.95)], "max": ordered[-1]} if ordered else {}


def encode_rows(
    rows: list[Row],
    renderer: Renderer,
    settings: "TrainingSettings",
    cache: FileCache | None = None,
    *,
    keep_all: bool = False,
    names: RowNames = AS_NUMBERED,
) -> tuple[list[Row], TokenReport]:
    """Rows with `prompt_ids` and, per kind, `completion_ids` or `chosen_ids` and `rejected_ids`.

    `on_overlong` decides what happens to long rows. A cut takes the start of the prompt and the end of an answer, and keeps
    the tokenizer's start of a text and the end of the turn. Rows left without a training signal are dropped.

    Args:
        cache: of tokenised rows, shared by runs with different limits.
        keep_all: keep rows without a training signal, with the reason as `dropped_because`.
        names: the names of rows in messages.

    Raises:
        DataInvalid: some rows cannot be rendered; every such row is named, up to `MAX_ERRORS`.
        DataOverlong: `on_overlong` is `reject` and some rows are too long.
        ModelRefused: the chat template fails on every row.
    """
    report, contradictions = TokenReport(names=names), Contradictions()
    limits = _Limits(settings, report, len(renderer.end_ids), len(renderer.start_ids))
    encoded: list[Row] = []
    for index, (given, whole) in enumerate(zip(rows, _tokenized(rows, renderer, cache, names), strict=True), start=1):
        row = {**given, "row": given.get("row") or index}
        ids = limits.apply(row["row"], whole)
        if ids is None:
            continue
        answers = {f"{name}_ids": answer for name, answer in zip(_answers(row), ids.answers_ids, strict=True)}
        row |= {"prompt_ids": ids.prompt_ids, **answers}
        is_cut = len(ids.prompt_ids) < len(whole.prompt_ids)
        reason = loss_of_signal(ids.prompt_ids, ids.answers_ids, renderer, is_cut=is_cut)
        if encoded and _undoes(row, encoded[-1]):
            reason = "answers_equal"
            if not keep_all:
                encoded.pop()
        if reason:
            report.findings.add(reason, row["row"])
            if not keep_all:
                continue
            row["dropped_because"] = reason
        encoded.append(row)
    for row in encoded:
        note_text(row, _answers(row), renderer, report.findings)
        contradictions.look(row)
        report.total_tokens += sum(len(row["prompt_ids"]) + len(row[f"{name}_ids"]) for name in _answers(row))
    limits.check()
    contradictions.note(report.findings)
    report.rows = len(encoded)
    return encoded, report


class _Limits:
    """Applies the length limits of a run to its rows.

    Args:
        ends, starts: number of ids that end an answer, and that begin a prompt; a cut keeps them.
    """

    def __init__(self, settings: "TrainingSettings", report: TokenReport, ends: int, starts: int) -> None:
        self._settings, self._report, self._ends, self._starts = settings, report, ends, starts
        self._overlong: list[tuple[int, Message]] = []
        """Numbers of rows and their lengths."""

    def apply(self, number: int, ids: Encoded) -> Encoded | None:
        """The row within the limits; None if `on_overlong` drops or rejects it."""
        settings, report = self._settings, self._report
        longest_answer = max(len(answer) for answer in ids.answers_ids)
        report.prompt_tokens.append(len(ids.prompt_ids))
        report.answer_tokens += [len(answer) for answer in ids.answers_ids]
        tokens = len(ids.prompt_ids) + longest_answer
        if len(ids.prompt_ids) <= settings.max_prompt_length and tokens <= settings.max_length:
            return ids
        if settings.on_overlong == "reject":
            self._overlong.append((number, say("rows.tokens", tokens=tokens, prompt=len(ids.prompt_ids))))
            return None
        if settings.on_overlong == "drop":
            report.rows_dropped.append(number)
            return None
        report.rows_cut.append(number)
        return self._cut(ids)

    def check(self) -> None:
        """Raises `DataOverlong` if any row was rejected."""
        if self._overlong:
            names, (first, length) = self._report.names, self._overlong[0]
            limits = {name: str(getattr(self._settings, name)) for name in ("max_prompt_length", "max_length")}
            raise DataOverlong(
                say("rows.overlong", n=len(self._overlong), first=names.long(first), length=length, **limits),
                [names.detail("prompt", reason, number) for number, reason in self._overlong[:MAX_ERRORS]],
            )

    def _cut(self, ids: Encoded) -> Encoded:
        excess = max(0, len(ids.prompt_ids) - self._settings.max_prompt_length)
        prompt_ids = ids.prompt_ids[: self._starts] + ids.prompt_ids[self._starts + excess :]
        room = self._settings.max_length - len(prompt_ids)
        kept = max(0, room - self._ends)
        answers = [a if len(a) <= room else (a[:kept] + a[-self._ends :])[-room:] for a in ids.answers_ids]
        self._report.prompts_cut += len(prompt_ids) < len(ids.prompt_ids)
        self._report.completions_cut += sum(len(new) < len(old) for new, old in zip(answers, ids.answers_ids, strict=True))
        return Encoded(prompt_ids, answers)


def _undoes(row: Row, before: Row) -> bool:
    """Whether two labelled rows come from one pair whose answers are the same token ids."""
    same = ("row", "prompt_ids", "completion_ids")
    return "label" in row and row["label"] != before["label"] and all(row[name] == before[name] for name in same)


def _answers(row: Row) -> tuple[str, ...]:
    return ("chosen", "rejected") if "chosen" in row else ("completion",)


def _tokenized(rows: list[Row], renderer: Renderer, cache: FileCache | None, names: RowNames) -> list[Encoded]:
    identity = _identity(rows, renderer) if cache else None
    if cache and identity:
        known = cache.read(identity)
        if known is not None:
            return _unpacked(known, [1 + len(_answers(row)) for row in rows])
    found: list[Encoded] = []
    broken: list[tuple[int, str]] = []
    is_template_at_fault = renderer.template is not None
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        texts: list[Texts] = []
        for index, row in enumerate(rows[start : start + _ROWS_AT_ONCE], start=start + 1):
            try:
                texts.append(renderer.texts(row["prompt"], [row[name] for name in _answers(row)]))
            except DataInvalid as error:
                is_template_at_fault = is_template_at_fault and isinstance(error, TemplateFault)
                broken.append((row.get("row") or index, error.message))
        if not broken:
            found += renderer.encode_texts(texts)
    reasons = {reason for _, reason in broken}
    if renderer.template and is_template_at_fault and len(reasons) == 1 and len(broken) == len(rows) > 1:
        raise renderer.template.refusal(say("rows.on_every_row", reason=broken[0][1]))
    if broken:
        first, reason = broken[0]
        raise DataInvalid(
            say("rows.not_rendered", n=len(broken), first=names.long(first), reason=reason),
            [names.detail("prompt", reason, number) for number, reason in broken[:MAX_ERRORS]],
        )
    if cache and identity:
        cache.write(identity, _packed(found))
    return found


def _identity(rows: list[Row], renderer: Renderer) -> dict[str, Any] | None:
    """Everything that determines the ids of rows; None if something else may, such as a template that asks for the date."""
    tokenizer = renderer.tokenizer
    if not getattr(tokenizer, "is_fast", False) or "strftime_now" in str(tokenizer.chat_template):
        return None
    texts = hashlib.sha256()
    for row in rows:
        texts.update(json.dumps([row["prompt"], *(row[name] for name in _answers(row))]).encode() + b"\n")
    return {
        "what": "token ids",
        "rows": texts.hexdigest(),
        "rules": _RULES,
        "template": renderer.fingerprint,
        "special tokens in text": renderer.special_tokens_in_text,
        "splits special tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
        "special tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "tokenizer": renderer.tokenizer_fingerprint,
        "versions": [version("tokenizers"), version("transformers")],
    }


def _packed(rows: list[Encoded]) -> bytes:
    """The lengths of all lists of ids, then the ids, in 4 bytes each."""
    lists = [ids for row in rows for ids in (row.prompt_ids, *row.answers_ids)]
    return array("i", chain(map(len, lists), *lists)).tobytes()


def _unpacked(content: bytes, lists_of_rows: list[int]) -> list[Encoded]:
    values = array("i", content)
    first = sum(lists_of_rows)
    lists = (values[start:end].tolist() for start, end in pairwise(accumulate(values[:first], initial=first)))
    rows = [[next(lists) for _ in range(count)] for count in lists_of_rows]
    return [Encoded(prompt, answers) for prompt, *answers in rows]
