"""From text to token ids: the one rendering that training, evaluation, samples and comparisons share.

Knows the tokenizer and the length limits. Knows nothing of models, losses or files.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from trainer_core.errors import DataInvalid, DataOverlong, Detail
from trainer_core.row_rules import Row, is_text
from trainer_core.rows import MAX_ERRORS

if TYPE_CHECKING:
    from trainer_core.config import TrainingSettings

Messages = list[dict[str, str]]


_SHOWN_ROWS = 20


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

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "total_tokens": self.total_tokens,
            "prompt_tokens": _spread(self.prompt_tokens),
            "answer_tokens": _spread(self.answer_tokens),
            "prompts_cut": self.prompts_cut,
            "completions_cut": self.completions_cut,
            "first_rows_cut": self.rows_cut[:_SHOWN_ROWS],
            "rows_dropped": len(self.rows_dropped),
            "first_rows_dropped": self.rows_dropped[:_SHOWN_ROWS],
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
        return Encoded(self.prompt_ids(prompt), [self._answer_ids(prompt, answer) for answer in answers])

    def _answer_ids(self, prompt: str | Messages, answer: str | Messages) -> list[int]:
        end: int = self.tokenizer.eos_token_id
        if not self.uses_template:
            text = answer if isinstance(answer, str) else "\n".join(message["content"] for message in answer)
            ids = self._ids(text)
            return ids if ids and ids[-1] == end else [*ids, end]
        before = self.prompt_text(prompt)
        messages = _as_messages(prompt, "user") + _as_messages(answer, "assistant")
        whole = self._template(messages, add_generation_prompt=False)
        if not whole.startswith(before):
            raise DataInvalid("the chat template renders the prompt differently once an answer follows it")
        # Tokenised apart, as generation sees it: jointly, an answer that opens with a line break would merge with the
        # prompt's last token, and the model would train on a prompt that it never gets.
        ids = self._ids(whole[len(before) :])
        # Templates put a line break after the end token; generation has stopped by then, so nothing is learnt from it.
        while ids and ids[-1] != end and end in ids:
            ids.pop()
        return ids if ids and ids[-1] == end else [*ids, end]

    def _template(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            raise DataInvalid(f"the chat template refuses these messages: {error}") from error

    def _ids(self, text: str) -> list[int]:
        if not is_text(text):
            raise DataInvalid("the text holds half of a surrogate pair: a character that was cut in two")
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _as_messages(value: str | Messages, role: str) -> Messages:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


def encode_rows(rows: list[Row], renderer: Renderer, settings: "TrainingSettings") -> tuple[list[Row], TokenReport]:
    """Rows with `prompt_ids` and, per kind, `completion_ids` or `chosen_ids` and `rejected_ids`.

    Lengths are limited as `on_overlong` says: a cut takes the start of the prompt and the end of an answer, and keeps the
    end token.

    Raises:
        DataInvalid: some rows cannot be rendered; every such row is named, up to `MAX_ERRORS`.
        DataOverlong: `on_overlong` is `reject` and some rows are too long.
    """
    report = TokenReport()
    encoded: list[Row] = []
    broken: list[Detail] = []
    overlong: list[Detail] = []
    for index, row in enumerate(rows, start=1):
        number = row.get("row") or index
        names = ("chosen", "rejected") if "chosen" in row else ("completion",)
        try:
            ids = renderer.encode(row["prompt"], [row[name] for name in names])
        except DataInvalid as error:
            broken.append(Detail("prompt", error.message, number))
            continue
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
    if broken:
        raise DataInvalid(f"{len(broken)} rows cannot be rendered, the first is row {broken[0].line}", broken[:MAX_ERRORS])
    if overlong:
        raise DataOverlong(
            f"{len(overlong)} rows are longer than max_prompt_length={settings.max_prompt_length} or "
            f"max_length={settings.max_length}, the first is row {overlong[0].line} ({overlong[0].reason})",
            overlong[:MAX_ERRORS],
        )
    report.rows = len(encoded)
    return encoded, report


def _cut(ids: Encoded, settings: "TrainingSettings", report: TokenReport) -> Encoded:
    prompt_ids = ids.prompt_ids[-settings.max_prompt_length :]
    room = settings.max_length - len(prompt_ids)
    answers = [answer if len(answer) <= room else [*answer[: room - 1], answer[-1]] for answer in ids.answers_ids]
    report.prompts_cut += len(prompt_ids) < len(ids.prompt_ids)
    report.completions_cut += sum(len(new) < len(old) for new, old in zip(answers, ids.answers_ids, strict=True))
    return Encoded(prompt_ids, answers)
