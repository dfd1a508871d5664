"""A tokenizer's chat template: renders conversations as text, and knows what the template writes around them.

Knows messages and text. Knows nothing of token ids, length limits or files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trainer_core.errors import DataInvalid, Detail, ModelRefused, SpecInvalid
from trainer_core.wording import say

Messages = Sequence[Mapping[str, Any]]

_QUESTION, _ANSWER = "سؤال", "جواب"
# Ways to open a plain conversation: some templates require a system message, others refuse one.
_OPENINGS: tuple[list[dict[str, str]], ...] = ([], [{"role": "system", "content": "تعليمات"}])
_THOUGHTFUL: list[dict[str, str]] = [
    {"content": f"<think>\n{_QUESTION}\n</think>\n\n{_ANSWER}"},
    {"content": _ANSWER, "reasoning_content": _QUESTION},
]
# An answer's own thoughts, and the empty block that a template writes for an answer without thoughts.
_THOUGHTS = re.compile(r"\s*<(\w+)>(.*?)</\1>\s*", re.DOTALL)
_EMPTY_THOUGHTS = re.compile(r"\s*<(\w+)>\s*</\1>\s*")
_OPEN_THOUGHTS = re.compile(r"<(\w+)>\s*$")
_SHOWN = 300


class TemplateFault(DataInvalid):
    """The template fails on these messages, or renders them in a way that makes training and generation disagree."""


@dataclass(frozen=True)
class Shape:
    """What a template writes around a plain question and its answer.

    Attributes:
        after_prompt: from the end of the question to where the answer begins.
        opening: the part of it that asks for the answer, such as `<|im_start|>assistant` and its line break.
        after_answer: from the end of the answer to the end of the text.
        thoughts: the tag of the block that holds the model's thoughts, such as `think`.
    """

    after_prompt: str
    opening: str
    after_answer: str
    thoughts: str


class ChatTemplate:
    """The chat template of a tokenizer, with the options of a run.

    Args:
        system_prompt: opens every conversation without a system message of its own.
        variables: values that the template can read besides the messages, such as `enable_thinking`.
        model: the model's name, for errors.

    Raises:
        ModelRefused: the template fails on a plain question and answer, leaves one of them out, or renders the question
            differently when an answer follows it.
        SpecInvalid: it does so only with these options.
    """

    def __init__(
        self, tokenizer: Any, system_prompt: str | None = None, variables: Mapping[str, Any] | None = None, model: str = ""
    ) -> None:
        self._tokenizer, self._system_prompt, self._variables = tokenizer, system_prompt, dict(variables or {})
        self._model = model
        try:
            self.shape = self._probe()
        except ModelRefused as refused:
            self._blame_options(refused)
            raise

    def prompt(self, messages: Messages) -> str:
        """The text that the model sees before it answers. Raises `TemplateFault`."""
        return self._render(messages, add_generation_prompt=True)

    def answer(self, messages: Messages, before: str, answer: Messages) -> str:
        """The text of an answer, from the end of its prompt.

        For an answer without thoughts some templates write an empty block. It is left out, since the prompt did not open
        it. An answer's own block is rendered once.

        Args:
            before: `prompt(messages)`.

        Raises:
            TemplateFault: also if the template renders the prompt differently when an answer follows it.
        """
        found = self._after(before, [*messages, *answer])
        last, tag = answer[-1], self.shape.thoughts
        content = str(last.get("content") or "")
        own = _THOUGHTS.match(content)
        if own is None or own[1] != tag:
            empty = _EMPTY_THOUGHTS.match(found)
            is_added = empty and empty[1] == tag and not str(last.get("reasoning_content") or "").strip()
            return found[empty.end() :] if empty and is_added else found
        opening = f"<{tag}>"
        if self._count(opening, found) == content.count(opening) and not last.get("reasoning_content"):
            return found
        if last.get("reasoning_content"):
            raise TemplateFault(say("template_thoughts_twice"))
        apart = {**last, "content": content[own.end() :], "reasoning_content": own[2].strip("\n")}
        found = self._after(before, [*messages, *answer[:-1], apart])
        if self._count(opening, found) != content.count(opening):
            raise TemplateFault(say("template_thoughts_lost", tag=opening))
        return found

    @property
    def unread(self) -> list[str]:
        """Names of the variables that the template never reads."""
        if not self._variables:
            return []
        environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
        # transformers adds these tags; they read no variables.
        text = re.sub(r"{%[-+]?\s*(end)?generation\s*[-+]?%}", "", self._tokenizer.get_chat_template())
        try:
            read = meta.find_undeclared_variables(environment.parse(text))
        except TemplateError:
            return []  # an unknown tag; rendering has shown that the template works
        return sorted(self._variables.keys() - read)

    def _count(self, tag: str, answer: str) -> int:
        """How often a tag occurs in the assistant's turn."""
        return (self.shape.opening + answer).count(tag)

    def _after(self, before: str, messages: Messages) -> str:
        whole = self._render(messages, add_generation_prompt=False)
        if not whole.startswith(before):
            raise TemplateFault(say("template_moves_prompt"))
        # The answer is tokenised separately, as in generation. Tokenised together, an answer that starts with a line break
        # would merge with the prompt's last token, and the model would train on a prompt that it never sees.
        return whole[len(before) :]

    def _render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        if self._system_prompt is not None and not (messages and messages[0].get("role") == "system"):
            messages = [{"role": "system", "content": self._system_prompt}, *messages]
        try:
            return self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **self._variables
            )
        except Exception as error:
            # A template is code by the model's author and can raise anything.
            reason = f"{type(error).__name__}: {str(error)[:_SHOWN]}".rstrip(".")
            raise TemplateFault(say("template_fails", problem=reason)) from error

    def _blame_options(self, refused: ModelRefused) -> None:
        """Raises `SpecInvalid` when the template works without an option of this run."""
        for name, value, options in (
            ("system_prompt", self._system_prompt, (None, self._variables)),
            ("chat_template_kwargs", self._variables, (self._system_prompt, {})),
        ):
            if not value:
                continue
            try:
                ChatTemplate(self._tokenizer, *options, self._model)
            except (ModelRefused, SpecInvalid):
                continue
            reason = refused.details[0].reason
            raise SpecInvalid.at(name, say("template_option_broken", option=name, reason=reason)) from refused

    def _probe(self) -> Shape:
        """Renders a plain question and answer. Raises `ModelRefused`."""
        fault: TemplateFault | None = None
        for opening in _OPENINGS:
            question: Messages = [*opening, {"role": "user", "content": _QUESTION}]
            try:
                before = self._render(question, add_generation_prompt=True)
                whole = self._render([*question, {"role": "assistant", "content": _ANSWER}], add_generation_prompt=False)
            except TemplateFault as found:
                fault = fault or found
                continue
            return self._shape(question, before, whole)
        assert fault
        raise self.refusal(fault.message) from fault

    def _shape(self, question: Messages, before: str, whole: str) -> Shape:
        """What the template wrote around the question and the answer, if it wrote both."""
        if _QUESTION not in before:
            raise self.refusal(say("template_drops_prompt"))
        if _ANSWER not in whole:
            raise self.refusal(say("template_drops_answer"))
        if not whole.startswith(before) and not self._renders_thoughts(question, before):
            same = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(whole))
            raise self.refusal(say("template_asks_otherwise", opening=repr(before[same:])[1:-1]))
        tag = _EMPTY_THOUGHTS.match(whole.removeprefix(before)) or _OPEN_THOUGHTS.search(before)
        return Shape(
            after_prompt=before.rpartition(_QUESTION)[2],
            opening=self._opening(question, before),
            after_answer=whole.rpartition(_ANSWER)[2],
            thoughts=tag[1] if tag else "think",
        )

    def _renders_thoughts(self, question: Messages, before: str) -> bool:
        """Whether the template keeps the prompt unchanged before an answer with thoughts, if not before one without."""
        for answer in _THOUGHTFUL:
            try:
                self._after(before, [*question, {"role": "assistant", **answer}])
            except TemplateFault:
                continue
            return True
        return False

    def _opening(self, question: Messages, before: str) -> str:
        try:
            closed = self._render(question, add_generation_prompt=False)
        except TemplateFault:
            closed = ""
        return before[len(closed) :] if closed and before.startswith(closed) else before.rpartition(_QUESTION)[2]

    def refusal(self, reason: str) -> ModelRefused:
        """The error that blames the model's chat template, for a reason."""
        if self._model:
            sentence = say("template_refused", model=self._model, reason=reason)
        else:
            sentence = say("template_refused_unnamed", reason=reason)
        return ModelRefused(sentence, [Detail("model_name", reason)])
