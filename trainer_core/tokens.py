"""From text to token ids: the one rendering that training, evaluation, samples and comparisons share.

Knows the tokenizer and the length limits. Knows nothing of models, losses or files.
"""

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from trainer_core.errors import DataInvalid, DataOverlong, Detail
from trainer_core.file_cache import FileCache
from trainer_core.row_rules import Row, is_text
from trainer_core.rows import MAX_ERRORS

if TYPE_CHECKING:
    from trainer_core.config import TrainingSettings

Messages = list[dict[str, str]]


_HALF_A_CHARACTER = "the text holds half of a surrogate pair: a character that was cut in two"
# Rows that are tokenised at once: enough for every core, little in memory.
_ROWS_AT_ONCE = 1000


@dataclass
class TokenReport:
    """Lengths of the rows, and what the limits did to them, before any training. Rows have their number in the file.

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

    def as_dict(self, shown_rows: int = 20) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "total_tokens": self.total_tokens,
            "prompt_tokens": _spread(self.prompt_tokens),
            "answer_tokens": _spread(self.answer_tokens),
            "prompts_cut": self.prompts_cut,
            "completions_cut": self.completions_cut,
            "first_rows_cut": self.rows_cut[:shown_rows],
            "rows_dropped": len(self.rows_dropped),
            "first_rows_dropped": self.rows_dropped[:shown_rows],
        }


def _spread(lengths: Sequence[int]) -> dict[str, int]:
    """Median, 95th percentile and largest, each a length that occurs."""
    ordered = sorted(lengths)
    last = len(ordered) - 1
    return {"median": ordered[last // 2], "p95": ordered[round(last * 0.95)], "max": ordered[-1]} if ordered else {}


@dataclass(frozen=True)
class Encoded:
    """A prompt and its answers as token ids. Each answer ends with the end token."""

    prompt_ids: list[int]
    answers_ids: list[list[int]]


class Renderer:
    """Renders prompts and answers with one tokenizer and one choice of template."""

    def __init__(self, tokenizer: Any, apply_chat_template: bool | Literal["auto"] = "auto") -> None:
        self.tokenizer = tokenizer
        has_template = bool(tokenizer.chat_template)
        if apply_chat_template is True and not has_template:
            raise DataInvalid("apply_chat_template is true, but the tokenizer has no chat template")
        self.uses_template = has_template if apply_chat_template == "auto" else apply_chat_template

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the template in use, hex."""
        template = self.tokenizer.chat_template if self.uses_template else "prompt + completion + end token"
        return hashlib.sha256(str(template).encode()).hexdigest()

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """SHA-256 of a fast tokenizer's vocabulary and rules, hex."""
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    def prompt_text(self, prompt: str | Messages) -> str:
        """The text that the model sees before it answers."""
        if not self.uses_template:
            return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
        return self._template(_as_messages(prompt, "user"), add_generation_prompt=True)

    def prompt_ids(self, prompt: str | Messages) -> list[int]:
        """Token ids of `prompt_text`."""
        return self._ids(self.prompt_text(prompt))

    def encode(self, prompt: str | Messages, answers: Sequence[str | Messages]) -> Encoded:
        """Ids of a prompt and of each answer after it, which begins where the prompt ends.

        Raises:
            DataInvalid: the template refuses the messages, or renders the prompt differently once an answer follows, so
                that training would see another prompt than generation.
        """
        return self.encode_texts([self.texts(prompt, answers)])[0]

    def texts(self, prompt: str | Messages, answers: Sequence[str | Messages]) -> list[str]:
        """The text before an answer, and each answer's. Raises as `encode` does."""
        before = self.prompt_text(prompt)
        found = [before, *(self._answer_text(prompt, before, answer) for answer in answers)]
        if not all(map(is_text, found)):
            raise DataInvalid(_HALF_A_CHARACTER)
        return found

    def encode_texts(self, rows: Sequence[list[str]]) -> list[Encoded]:
        """Ids of many rows of `texts` at once, for which a tokenizer uses all cores."""
        every = iter(self.tokenizer([text for row in rows for text in row], add_special_tokens=False)["input_ids"])
        ids = [[list(next(every)) for _ in row] for row in rows]
        return [Encoded(prompt, [self._ended(answer) for answer in answers]) for prompt, *answers in ids]

    def _answer_text(self, prompt: str | Messages, before: str, answer: str | Messages) -> str:
        if not self.uses_template:
            return answer if isinstance(answer, str) else "\n".join(message["content"] for message in answer)
        messages = _as_messages(prompt, "user") + _as_messages(answer, "assistant")
        whole = self._template(messages, add_generation_prompt=False)
        if not whole.startswith(before):
            raise DataInvalid("the chat template renders the prompt differently once an answer follows it")
        # Tokenised apart, as generation sees it: jointly, an answer that opens with a line break would merge with the
        # prompt's last token, and the model would train on a prompt that it never gets.
        return whole[len(before) :]

    def _ended(self, ids: list[int]) -> list[int]:
        end: int = self.tokenizer.eos_token_id
        # Templates put a line break after the end token; generation has stopped by then, so nothing is learnt from it.
        while self.uses_template and ids and ids[-1] != end and end in ids:
            ids.pop()
        return ids if ids and ids[-1] == end else [*ids, end]

    def _template(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            raise DataInvalid(f"the chat template refuses these messages: {error}") from error

    def _ids(self, text: str) -> list[int]:
        if not is_text(text):
            raise DataInvalid(_HALF_A_CHARACTER)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _as_messages(value: str | Messages, role: str) -> Messages:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


def encode_rows(
    rows: list[Row], renderer: Renderer, settings: "TrainingSettings", cache: FileCache | None = None
) -> tuple[list[Row], TokenReport]:
    """Rows with `prompt_ids` and, per kind, `completion_ids` or `chosen_ids` and `rejected_ids`.

    Lengths are limited as `on_overlong` says: a cut takes the start of the prompt and the end of an answer, and keeps the
    end token.

    Args:
        cache: of tokenised rows, for trainings with other limits as well.

    Raises:
        DataInvalid: some rows cannot be rendered; every such row is named, up to `MAX_ERRORS`.
        DataOverlong: `on_overlong` is `reject` and some rows are too long.
    """
    report = TokenReport()
    encoded: list[Row] = []
    overlong: list[Detail] = []
    for index, (row, whole) in enumerate(zip(rows, _tokenized(rows, renderer, cache), strict=True), start=1):
        ids = whole
        number = row.get("row") or index
        names = _answers(row)
        longest_answer = max(len(answer) for answer in ids.answers_ids)
        report.prompt_tokens.append(len(ids.prompt_ids))
        report.answer_tokens += [len(answer) for answer in ids.answers_ids]
        too_long = len(ids.prompt_ids) > settings.max_prompt_length
        too_long = too_long or len(ids.prompt_ids) + longest_answer > settings.max_length
        if too_long and settings.on_overlong == "reject":
            tokens = len(ids.prompt_ids) + longest_answer
            overlong.append(Detail("prompt", f"{tokens} tokens, prompt {len(ids.prompt_ids)}", number))
        elif too_long and settings.on_overlong == "drop":
            report.rows_dropped.append(number)
        else:
            if too_long:
                ids = _cut(ids, settings, report)
                report.rows_cut.append(number)
            answers = {f"{name}_ids": answer for name, answer in zip(names, ids.answers_ids, strict=True)}
            encoded.append({**row, "prompt_ids": ids.prompt_ids, **answers, "row": number})
            report.total_tokens += sum(len(ids.prompt_ids) + len(answer) for answer in ids.answers_ids)
    if overlong:
        raise DataOverlong(
            f"{len(overlong)} rows are longer than max_prompt_length={settings.max_prompt_length} or "
            f"max_length={settings.max_length}, the first is row {overlong[0].line} ({overlong[0].reason})",
            overlong[:MAX_ERRORS],
        )
    report.rows = len(encoded)
    return encoded, report


def _answers(row: Row) -> tuple[str, ...]:
    return ("chosen", "rejected") if "chosen" in row else ("completion",)


def _tokenized(rows: list[Row], renderer: Renderer, cache: FileCache | None) -> list[Encoded]:
    identity = _identity(rows, renderer) if cache else None
    if cache and identity:
        known = cache.read(identity)
        if known is not None:
            return _unpacked(known, [1 + len(_answers(row)) for row in rows])
    found: list[Encoded] = []
    broken: list[Detail] = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        texts: list[list[str]] = []
        for index, row in enumerate(rows[start : start + _ROWS_AT_ONCE], start=start + 1):
            try:
                texts.append(renderer.texts(row["prompt"], [row[name] for name in _answers(row)]))
            except DataInvalid as error:
                broken.append(Detail("prompt", error.message, row.get("row") or index))
        if not broken:
            found += renderer.encode_texts(texts)
    if broken:
        raise DataInvalid(f"{len(broken)} rows cannot be rendered, the first is row {broken[0].line}", broken[:MAX_ERRORS])
    if cache and identity:
        cache.write(identity, _packed(found))
    return found


def _identity(rows: list[Row], renderer: Renderer) -> dict[str, Any] | None:
    """All that decides the ids of rows; None where something else may, as a template that asks for the date."""
    tokenizer = renderer.tokenizer
    if not getattr(tokenizer, "is_fast", False) or "strftime_now" in str(tokenizer.chat_template):
        return None
    texts = hashlib.sha256()
    for row in rows:
        texts.update(json.dumps([row["prompt"], *(row[name] for name in _answers(row))]).encode() + b"\n")
    return {
        "what": "token ids",
        "rows": texts.hexdigest(),
        "template": renderer.fingerprint,
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


def _cut(ids: Encoded, settings: "TrainingSettings", report: TokenReport) -> Encoded:
    prompt_ids = ids.prompt_ids[-settings.max_prompt_length :]
    room = settings.max_length - len(prompt_ids)
    answers = [answer if len(answer) <= room else [*answer[: room - 1], answer[-1]] for answer in ids.answers_ids]
    report.prompts_cut += len(prompt_ids) < len(ids.prompt_ids)
    report.completions_cut += sum(len(new) < len(old) for new, old in zip(answers, ids.answers_ids, strict=True))
    return Encoded(prompt_ids, answers)
