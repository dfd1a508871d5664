"""The errors of the product: one list of codes for the library, the jobs and the API.

TafdilError
├── SpecInvalid         an invalid config or request
├── DataInvalid         rows that are missing, broken or of the wrong kind
│   ├── DataOverlong    rows longer than the limits, with `on_overlong="reject"`
│   └── DataUnclear     a file that can be read in several ways; the question says which option to set
├── ModelNotFound       no such model in the places that are searched
├── ModelRefused        a model that exists but may not or cannot be used
├── ForwardMismatch     a model whose numbers differ from its own forward pass
├── ReferenceMismatch   the reference is not the model that the config names
├── NonfiniteLoss       the loss became NaN or infinite
├── NotInstalled        a package that an option needs is missing on the training machine
├── DiskFull            a checkpoint or the model could not be written
└── Stopped             training stopped at a step boundary on request

To add an error: add its code to `CODES` (with retry advice), its title and hint to `trainer_core/wording/errors.json`, and a
class here if the library raises it.
This module is torch-free and knows nothing of HTTP; the API maps codes to statuses itself.
"""

import dataclasses
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Self

from trainer_core.wording import Message, said, say


@dataclass(frozen=True)
class ErrorCode:
    """What a code means for the person who sees it.

    `retryable`: the same request may succeed later. `user_fault`: the request or the data must change first. `title` is
    a few words, and `hint` a sentence on what to do.
    """

    retryable: bool
    user_fault: bool
    title: Message
    hint: Message


def _code(code: str, *, retryable: bool = False, user_fault: bool = False) -> tuple[str, ErrorCode]:
    return code, ErrorCode(retryable, user_fault, say(f"error.{code}"), say(f"hint.{code}"))


# The titles and hints are in `trainer_core/wording/errors.json`.
CODES: dict[str, ErrorCode] = dict(
    [
        _code("spec_invalid", user_fault=True),
        _code("data_invalid", user_fault=True),
        _code("data_unclear", user_fault=True),
        _code("data_overlong", user_fault=True),
        _code("model_not_found", user_fault=True),
        _code("model_refused", user_fault=True),
        _code("forward_mismatch", user_fault=True),
        _code("reference_mismatch", user_fault=True),
        _code("nonfinite_loss", user_fault=True),
        _code("not_installed"),
        _code("oom_gpu", user_fault=True),
        _code("oom_host", user_fault=True),
        _code("disk_full", retryable=True),
        _code("hung", retryable=True),
        _code("poisoned", user_fault=True),
        _code("worker_lost", retryable=True),
        _code("gpu_busy", retryable=True),
        _code("gpu_lost", retryable=True),
        _code("timeout", retryable=True),
        _code("cancelled", user_fault=True),
        _code("not_found", user_fault=True),
        _code("state_conflict", user_fault=True),
        _code("idempotency_conflict", user_fault=True),
        _code("unauthorized", user_fault=True),
        _code("forbidden", user_fault=True),
        _code("method_not_allowed", user_fault=True),
        _code("too_large", user_fault=True),
        _code("rate_limited", retryable=True),
        _code("internal", retryable=True),
    ]
)


@dataclass(frozen=True)
class Detail:
    """One thing that is wrong: where it is, and why. `line` counts from 1 in JSONL, and rows from 1 in JSON.

    If several rows have the same error, `line` is the first one, `lines` has the first few, and `count` their number. `code`
    identifies the reason for programs and translations, and `params` holds its values. A reason that is a `Message` brings
    both.
    """

    field: str
    reason: str
    line: int | None = None
    count: int = 1
    lines: tuple[int, ...] = ()
    code: str | None = None
    params: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.reason, Message) and self.code is None:
            for name, value in self.reason.as_dict().items():
                object.__setattr__(self, name, value)

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"field": self.field, "reason": self.reason}
        found |= {"line": self.line} if self.line is not None else {}
        found |= {"count": self.count, "lines": list(self.lines)} if self.count > 1 else {}
        return found | ({"code": self.code, "params": self.params} if self.code else {})


@dataclass(frozen=True)
class Question:
    """The option that a file needs, and its likely value.

    `about` is the option in `ReadingOptions`. `choices` has the file's columns, sheets, likely encodings or score columns.
    `guess` is the likeliest value of the option, and `rows` has the first rows, read with it.
    """

    about: Literal["map", "encoding", "sheet", "threshold"]
    choices: tuple[str, ...]
    guess: Any = None
    rows: tuple[dict[str, Any], ...] = ()


@dataclass(eq=False)
class TafdilError(Exception):
    """An error with a code from `CODES`, a message for people, and what exactly is wrong.

    Example: `except DataInvalid as error: print(error.details[0].line)`.
    """

    message: str
    details: list[Detail] = field(default_factory=list)
    code: ClassVar[str] = "internal"

    def __str__(self) -> str:
        return self.message

    @classmethod
    def at(cls, field: str, message: str) -> Self:
        """An error with one cause: a sentence, and the field that it is about."""
        return cls(message, [Detail(field, message)])

    @property
    def retryable(self) -> bool:
        return CODES[self.code].retryable

    @property
    def user_fault(self) -> bool:
        return CODES[self.code].user_fault

    @property
    def hint(self) -> str:
        return CODES[self.code].hint

    def as_dict(self) -> dict[str, Any]:
        """The JSON form that jobs store and the API sends."""
        return error_dict(self.code, self.message, self.details)


def error_dict(code: str, message: str, details: list[Detail] | None = None) -> dict[str, Any]:
    """The one form of an error, wherever it is stored or sent."""
    known = CODES[code]
    return {
        "code": code,
        **said(message),
        "hint": str(known.hint),
        "retryable": known.retryable,
        "user_fault": known.user_fault,
        "details": [detail.as_dict() for detail in details or []],
    }


class SpecInvalid(TafdilError):
    code = "spec_invalid"


class DataInvalid(TafdilError):
    code = "data_invalid"


class DataOverlong(DataInvalid):
    code = "data_overlong"


@dataclass(eq=False)
class DataUnclear(DataInvalid):
    code: ClassVar[str] = "data_unclear"
    question: Question | None = None

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | ({"question": asdict(self.question)} if self.question else {})


class ModelNotFound(TafdilError):
    code = "model_not_found"


class ModelRefused(TafdilError):
    code = "model_refused"


class ForwardMismatch(TafdilError):
    code = "forward_mismatch"


class ReferenceMismatch(TafdilError):
    code = "reference_mismatch"


class NonfiniteLoss(TafdilError):
    code = "nonfinite_loss"


class NotInstalled(TafdilError):
    code = "not_installed"


class DiskFull(TafdilError):
    code = "disk_full"


class Stopped(TafdilError):
    """Training was asked to stop, saved a checkpoint at a step boundary, and stopped."""

    code = "cancelled"
