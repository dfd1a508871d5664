"""From text to token ids: the one rendering that training, evaluation, samples and comparisons share.

Knows the tokenizer and the length limits. Knows nothing of models, losses or files.
"""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from trainer_core.errors import DataInvalid, DataOverlong, Detail
from trainer_core.rows import MAX_ERRORS, Row

if TYPE_CHECKING:
    from trainer_core.config import TrainingSettings

Messages = list[dict[str, str]]


@dataclass
class TokenReport:
    """What the length limits did to the rows, before any training. Rows count from 1, in file order."""

    rows: int = 0
    longest_tokens: int = 0
    total_tokens: int = 0
    prompts_cut: int = 0
    completions_cut: int = 0
    rows_dropped: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "longest_tokens": self.longest_tokens,
            "total_tokens": self.total_tokens,
            "prompts_cut": self.prompts_cut,
            "completions_cut": self.completions_cut,
            "rows_dropped": len(self.rows_dropped),
            "first_rows_dropped": self.rows_dropped[:20],
        }


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

    def encode(self, prompt: str | Messages, answers: list[str | Messages]) -> Encoded:
        """Ids of a prompt and of each answer after it.

        Raises:
            DataInvalid: the prompt's ids are not the beginning of the ids of prompt and answer together, so training
                would see another prompt than generation.
        """
        prompt_ids = self.prompt_ids(prompt)
        return Encoded(prompt_ids, [self._answer_ids(prompt, prompt_ids, answer) for answer in answers])

    def _answer_ids(self, prompt: str | Messages, prompt_ids: list[int], answer: str | Messages) -> list[int]:
        end: int = self.tokenizer.eos_token_id
        if not self.uses_template:
            text = answer if isinstance(answer, str) else "\n".join(message["content"] for message in answer)
            ids = self._ids(text)
            return ids if ids and ids[-1] == end else [*ids, end]
        messages = _as_messages(prompt, "user") + _as_messages(answer, "assistant")
        full_ids = self._ids(self._template(messages, add_generation_prompt=False))
        if full_ids[: len(prompt_ids)] != prompt_ids:
            raise DataInvalid("the chat template renders the prompt differently once an answer follows it")
        ids = full_ids[len(prompt_ids) :]
        # Templates put a line break after the end token; generation has stopped by then, so nothing is learnt from it.
        while ids and ids[-1] != end and end in ids:
            ids.pop()
        return ids if ids and ids[-1] == end else [*ids, end]

    def _template(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    def _ids(self, text: str) -> list[int]:
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
    for number, row in enumerate(rows, start=1):
        names = ("completion",) if "completion" in row else ("chosen", "rejected")
        try:
            ids = renderer.encode(row["prompt"], [row[name] for name in names])
        except DataInvalid as error:
            broken.append(Detail("prompt", error.message, number))
            continue
        longest_answer = max(len(answer) for answer in ids.answers_ids)
        too_long = len(ids.prompt_ids) > settings.max_prompt_length
        too_long = too_long or len(ids.prompt_ids) + longest_answer > settings.max_length
        if too_long and settings.on_overlong == "reject":
            tokens = len(ids.prompt_ids) + longest_answer
            overlong.append(Detail("prompt", f"{tokens} tokens, prompt {len(ids.prompt_ids)}", number))
        elif too_long and settings.on_overlong == "drop":
            report.rows_dropped.append(number)
        else:
            ids = _cut(ids, settings, report)
            answers = {f"{name}_ids": answer for name, answer in zip(names, ids.answers_ids, strict=True)}
            encoded.append({**row, "prompt_ids": ids.prompt_ids, **answers, "row": number})
            report.longest_tokens = max(report.longest_tokens, len(ids.prompt_ids) + longest_answer)
            report.total_tokens += sum(len(ids.prompt_ids) + len(answer) for answer in ids.answers_ids)
    if broken:
        raise DataInvalid(f"{len(broken)} rows cannot be rendered, the first is row {broken[0].line}", broken[:MAX_ERRORS])
    if overlong:
        raise DataOverlong(
            f"{len(overlong)} rows are longer than max_prompt_length={settings.max_prompt_length} or "
            f"max_length={settings.max_length}, the first is row {overlong[0].line} ({overlong[0].reason})",
            overlong[:MAX_ERRORS],
        )
    if not encoded:
        raise DataOverlong("every row is longer than the limits, so none is left to train on")
    report.rows = len(encoded)
    return encoded, report


def _cut(ids: Encoded, settings: "TrainingSettings", report: TokenReport) -> Encoded:
    prompt_ids = ids.prompt_ids[-settings.max_prompt_length :]
    room = settings.max_length - len(prompt_ids)
    answers = [answer if len(answer) <= room else [*answer[: room - 1], answer[-1]] for answer in ids.answers_ids]
    report.prompts_cut += len(prompt_ids) < len(ids.prompt_ids)
    report.completions_cut += sum(len(new) < len(old) for new, old in zip(answers, ids.answers_ids, strict=True))
    return Encoded(prompt_ids, answers)
