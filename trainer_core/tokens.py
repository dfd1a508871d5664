"""From text to token ids: the one rendering that training, evaluation, samples and comparisons share.

Knows the tokenizer and its template. Knows nothing of length limits, models, losses or files.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from trainer_core.chat_template import ChatTemplate
from trainer_core.errors import DataInvalid, SpecInvalid
from trainer_core.row_rules import is_text, text_of, turns_of
from trainer_core.stop_tokens import StopTokens
from trainer_core.versions import encode_marked_chat, mark_control_tokens
from trainer_core.wording import say

Messages = list[dict[str, Any]]

# Fields of a message that a template reads as keywords, not as users' text.
_NOT_TEXT = ("role", "type")
_PROBE = "a"
_PLAIN = "prompt + completion + end token"


@dataclass(frozen=True)
class Encoded:
    """A prompt and its answers as token ids. Each answer ends like the model's turns."""

    prompt_ids: list[int]
    answers_ids: list[list[int]]


@dataclass(frozen=True)
class Texts:
    """The text before an answer, then each answer's. `ids` is set if users' control tokens are plain text in them."""

    texts: list[str]
    ids: list[list[int]] | None = None


class Renderer:
    """Renders prompts and answers with one tokenizer and one choice of template.

    Args:
        apply_chat_template: `auto`: if the tokenizer has a template.
        system_prompt: opens every conversation without a system message of its own.
        chat_template_kwargs: values that the template can read besides the messages, such as `enable_thinking`.
        special_tokens_in_text: control tokens in users' text are encoded as plain text (`split`), refused, or encoded
            as control tokens (`allow`).
        generation_end: `eos_token_id` of the model's generation configuration.
        adds_start: whether prompts without a template begin as the tokenizer begins every text. Runs of earlier versions
            did not.
        model: the model's name, for errors.

    Raises:
        ModelRefused: the chat template cannot be used.
        SpecInvalid: an option needs a chat template, and there is none.
    """

    def __init__(
        self,
        tokenizer: Any,
        apply_chat_template: bool | Literal["auto"] = "auto",
        *,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        special_tokens_in_text: Literal["split", "refuse", "allow"] = "split",
        generation_end: Sequence[int] = (),
        adds_start: bool = True,
        model: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self.special_tokens_in_text = special_tokens_in_text
        has_template = bool(tokenizer.chat_template)
        if apply_chat_template is True and not has_template:
            raise DataInvalid.at("apply_chat_template", say("template_missing"))
        self.uses_template = has_template if apply_chat_template == "auto" else apply_chat_template
        self.system_prompt, self.chat_template_kwargs = system_prompt, dict(chat_template_kwargs or {})
        if not self.uses_template:
            for name, value in (("system_prompt", system_prompt), ("chat_template_kwargs", chat_template_kwargs)):
                if value:
                    raise SpecInvalid.at(name, say("template_option_unused", option=name))
        if not is_text(system_prompt or ""):
            raise SpecInvalid.at("system_prompt", say("system_prompt_half_character"))
        if special_tokens_in_text != "allow" and (
            found := self.control_tokens(system_prompt or "", [self.chat_template_kwargs])
        ):
            name = "system_prompt" if found[0] in (system_prompt or "") else "chat_template_kwargs"
            raise SpecInvalid.at(name, say("option_control_token", option=name, token=found[0]))
        self.template = ChatTemplate(tokenizer, system_prompt, chat_template_kwargs, model) if self.uses_template else None
        self._kept_end, self.end_ids = self._find_end()
        self.start_ids = self._find_start() if adds_start else ()
        self.stop = StopTokens(
            template=self.end_ids if self._kept_end else (),
            tokenizer=(tokenizer.eos_token_id,),
            # A model may have more, or fewer, ids than the tokenizer knows.
            generation_config=tuple(token for token in generation_end if 0 <= token < len(tokenizer)),
        )

    @property
    def thoughts_tag(self) -> str:
        """The tag of the block that holds the model's thoughts."""
        return self.template.shape.thoughts if self.template else "think"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the template in use and of its options, hex."""
        template = str(self.tokenizer.chat_template) if self.uses_template else _PLAIN
        if self.start_ids:
            template = f"{list(self.start_ids)} + {template}"
        if self.system_prompt is not None or self.chat_template_kwargs:
            template += json.dumps([self.system_prompt, self.chat_template_kwargs], sort_keys=True)
        return hashlib.sha256(template.encode()).hexdigest()

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """SHA-256 of a fast tokenizer's vocabulary and rules, hex."""
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    @cached_property
    def vocabulary_fingerprint(self) -> str:
        """SHA-256 of what decides a text's ids, hex: the same for a tokenizer that was saved and loaded again."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            rules: Any = self.tokenizer.get_vocab()
        else:
            whole = json.loads(backend.to_str())
            rules = {name: whole.get(name) for name in ("model", "added_tokens", "normalizer", "pre_tokenizer")}
        return hashlib.sha256(json.dumps(_without_defaults(rules), sort_keys=True).encode()).hexdigest()

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The ids of the tokenizer's special tokens."""
        return frozenset(token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special)

    @cached_property
    def after_prompt_tokens(self) -> int:
        """Number of tokens that the template writes between a prompt's text and its answer."""
        return len(self._encode(self.template.shape.after_prompt)) if self.template else 0

    def control_tokens(self, *values: str | Messages) -> list[str]:
        """The control tokens that occur in users' text, each once."""
        found = (match for value in values for text in _strings(value) for match in self._controls.findall(text))
        return list(dict.fromkeys(found))

    def prompt_text(self, prompt: str | Messages) -> str:
        """The text that the model sees before it answers."""
        if self.template is None:
            return text_of(prompt)
        return self.template.prompt(turns_of(prompt, "user"))

    def prompt_ids(self, prompt: str | Messages) -> list[int]:
        """Token ids of a prompt. Raises `DataInvalid`."""
        rendered = self.texts(prompt, [])
        return self._started(rendered.ids[0] if rendered.ids else self._encode(rendered.texts[0]))

    def encode(self, prompt: str | Messages, answers: Sequence[str | Messages]) -> Encoded:
        """Ids of a prompt and of each answer after it, which begins where the prompt ends.

        Raises:
            DataInvalid: the text contains a control token that `special_tokens_in_text` refuses, or half of a character.
            TemplateFault: the template refuses the messages, or renders the prompt differently when an answer follows.
        """
        return self.encode_texts([self.texts(prompt, answers)])[0]

    def texts(self, prompt: str | Messages, answers: Sequence[str | Messages]) -> Texts:
        """The text before an answer, and each answer's. Raises as `encode` does."""
        controls: list[str] = []
        if self.special_tokens_in_text != "allow":
            controls = self.control_tokens(prompt, *answers)
            self._refuse(controls, prompt, *answers)
        if controls:
            prompt, *answers = (self._marked(value) for value in (prompt, *answers))
        before = self.prompt_text(prompt)
        found = [before, *(self._answer_text(prompt, before, answer) for answer in answers)]
        if not all(map(is_text, found)):
            raise DataInvalid(say("text_half_character"))
        return Texts(found, self._plain_ids(found) if controls else None)

    def encode_texts(self, rows: Sequence[Texts]) -> list[Encoded]:
        """Ids of many rows of `texts` at once, for which a tokenizer uses all cores."""
        plain = [text for row in rows if row.ids is None for text in row.texts]
        every: Iterator[Any] = iter(self.tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else [])
        ids = [row.ids or [list(next(every)) for _ in row.texts] for row in rows]
        return [Encoded(self._started(prompt), [self._ended(answer) for answer in answers]) for prompt, *answers in ids]

    def response(self, ids: Sequence[int]) -> str:
        """The text of generated ids, up to where the turn ends."""
        return self.tokenizer.decode(self.stop.without_end(ids), skip_special_tokens=True).strip()

    @cached_property
    def _controls(self) -> re.Pattern[str]:
        added = self.tokenizer.added_tokens_decoder
        longest_first = sorted((added[token].content for token in self.control_ids), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _answer_text(self, prompt: str | Messages, before: str, answer: str | Messages) -> str:
        if self.template is None:
            return text_of(answer)
        text = self.template.answer(turns_of(prompt, "user"), before, turns_of(answer, "assistant"))
        after = self.template.shape.after_answer
        # Leave out what the template writes after the end of a turn, such as a line break: generation has stopped by then.
        return text[: len(text) - len(after)] + self._kept_end if self._kept_end and text.endswith(after) else text

    def _find_end(self) -> tuple[str, tuple[int, ...]]:
        """The part of the text after an answer that is kept, up to the end of the turn, and the ids that end it.

        Without a template, or if it ends turns in plain text that has no token of its own, answers end with the tokenizer's
        end token, and nothing is cut.
        """
        after = self.template.shape.after_answer if self.template else ""
        start = len(after) - len(after.lstrip())
        added = self.tokenizer.added_tokens_decoder if after.strip() else {}
        ids: list[int] = []
        for token in self._encode(after[start:]) if added else []:
            if token not in added or added[token].content.isspace():
                break
            ids.append(token)
        if not ids:
            return "", (self.tokenizer.eos_token_id,)
        end = "".join(added[token].content for token in ids)
        return after[: start + len(end)], tuple(ids)

    def _find_start(self) -> tuple[int, ...]:
        """The ids that the tokenizer puts before every text, such as `<s>`. A template writes its own."""
        if self.template:
            return ()
        plain, whole = self._encode(_PROBE), list(self.tokenizer(_PROBE)["input_ids"])
        places = (place for place in range(len(whole)) if plain and whole[place : place + len(plain)] == plain)
        return tuple(whole[: next(places, 0)])

    def _started(self, ids: list[int]) -> list[int]:
        """A prompt's ids behind the start of a text: with `allow`, one that was rendered before may already have it."""
        start = list(self.start_ids)
        has_start = self.special_tokens_in_text == "allow" and ids[: len(start)] == start
        return ids if has_start or not ids else [*start, *ids]

    def _ended(self, ids: list[int]) -> list[int]:
        """Ids with exactly one end of turn: with `allow`, text that was rendered before may already have one."""
        count = len(self.end_ids)
        end = list(self.end_ids)
        kept = len(ids)
        while kept and self.special_tokens_in_text == "allow" and self.tokenizer.decode([ids[kept - 1]]).isspace():
            kept -= 1
        if ids[:kept][-count:] == end:
            ids = ids[:kept]
            while ids[-2 * count :] == end * 2:
                ids = ids[:-count]
            return ids
        # A template may end tool calls differently.
        return ids if self.template and ids and ids[-1] in self.control_ids else [*ids, *end]

    def _refuse(self, controls: list[str], *values: str | Messages) -> None:
        """Raises `DataInvalid` if users' control tokens must not, or cannot, become plain text."""
        if controls and self.special_tokens_in_text == "refuse":
            raise DataInvalid(say("text_control_token", token=controls[0]))
        for name in (name for value in values for name in _names(value)):
            if found := self._controls.search(name):
                raise DataInvalid(say("name_control_token", token=found[0]))

    def _marked(self, value: Any) -> Any:
        """The value, with the control tokens in users' text marked."""
        if isinstance(value, dict):
            return {name: inner if name in _NOT_TEXT else self._marked(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._marked(inner) for inner in value]
        return mark_control_tokens(value, self._controls)

    def _plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of marked texts, with the marked control tokens encoded as plain text. Raises `DataInvalid`."""
        try:
            return [encode_marked_chat(self.tokenizer, text) for text in texts]
        except ValueError as error:
            raise DataInvalid(say("text_unsplittable_token", problem=str(error))) from error

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _strings(value: Any) -> Iterator[str]:
    """Every text in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in _NOT_TEXT:
                yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _names(value: Any) -> Iterator[str]:
    """Every field name in a value, at any depth."""
    if isinstance(value, Mapping):
        yield from map(str, value)
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _names(inner)


def _without_defaults(rules: Any) -> Any:
    """Rules without null and false values, which some versions of tokenizers omit."""
    if isinstance(rules, dict):
        return {name: _without_defaults(value) for name, value in rules.items() if value is not None and value is not False}
    return [_without_defaults(value) for value in rules] if isinstance(rules, list) else rules
