"""The errors of the product: one list of codes for the library, the jobs and the API.

TafdilError
├── SpecInvalid         an invalid config or request
├── DataInvalid         rows that are missing, broken or of the wrong kind
│   ├── DataOverlong    rows longer than the limits, under `on_overlong="reject"`
│   └── DataUnclear     a file that can be read in several ways; the question says which option to set
├── ModelNotFound       no such model where models are looked for
├── ModelRefused        a model that exists and may not or cannot be used
├── ForwardMismatch     a model whose numbers are not those of its own forward pass
├── ReferenceMismatch   the reference is not the model that the config names
├── NonfiniteLoss       the loss became NaN or infinite
├── NotInstalled        a package that an option needs is absent where the training runs
├── DiskFull            a checkpoint or the model could not be written
└── Stopped             training left at a step boundary because it was asked to

To add an error: add its code to `CODES` (with retry advice and a hint), then a class here if the library raises it.
This module is torch-free and knows nothing of HTTP; the API maps codes to statuses by itself.
"""

import dataclasses
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Self

from trainer_core.wording import Message, said


@dataclass(frozen=True)
class ErrorCode:
    """What a code means for the person who meets it.

    `retryable`: the same request may succeed later. `user_fault`: the request or the data must change first.
    """

    retryable: bool
    user_fault: bool
    hint: str


CODES: dict[str, ErrorCode] = {
    "spec_invalid": ErrorCode(False, True, "Correct the named fields and send the request again."),
    "data_invalid": ErrorCode(False, True, "Correct the named rows and upload the file again."),
    "data_unclear": ErrorCode(False, True, "Set the option that the message names, and upload the file again."),
    "data_overlong": ErrorCode(False, True, "Raise max_length, or set on_overlong to drop or truncate."),
    "model_not_found": ErrorCode(False, True, "Put the model below the models directory, or correct its name."),
    "model_refused": ErrorCode(
        False,
        True,
        "Fix the problem that the message names, or use another causal language model with safetensors weights and no "
        "remote code.",
    ),
    "forward_mismatch": ErrorCode(
        False, True, "Set acceleration to off. If the model is refused again, use a model of another type."
    ),
    "reference_mismatch": ErrorCode(False, True, "Check that ref_model_name and the model files are the ones you mean."),
    "nonfinite_loss": ErrorCode(False, True, "Lower learning_rate, or look at the rows of the named step."),
    "not_installed": ErrorCode(
        False,
        False,
        "Install the package named in the message on the training worker, or leave the option out. On a shared service, "
        "ask its operator.",
    ),
    "oom_gpu": ErrorCode(False, True, "Lower per_device_train_batch_size or max_length."),
    "oom_host": ErrorCode(False, True, "Lower the batch size, or run on a machine with more memory."),
    "disk_full": ErrorCode(True, False, "Free space below the data directory, then submit again."),
    "hung": ErrorCode(True, False, "Training made no progress for too long; see the job's log."),
    "poisoned": ErrorCode(False, True, "The job lost its worker several times at the same step; see its log."),
    "worker_lost": ErrorCode(True, False, "The worker died; the job is retried automatically."),
    "gpu_lost": ErrorCode(True, False, "The device failed; check it, then submit again."),
    "timeout": ErrorCode(True, False, "It took longer than allowed; try again or allow more time."),
    "cancelled": ErrorCode(False, True, "It was cancelled on request."),
    "not_found": ErrorCode(False, True, "Check the id; list what exists with GET."),
    "state_conflict": ErrorCode(False, True, "Check the current state first; this action does not apply to it."),
    "idempotency_conflict": ErrorCode(False, True, "Use a new Idempotency-Key for a different body."),
    "unauthorized": ErrorCode(False, True, "Send a valid API key: `Authorization: Bearer <key>`."),
    "forbidden": ErrorCode(False, True, "Use a key, or an address of the service, that may do this."),
    "method_not_allowed": ErrorCode(False, True, "Use a method that the `Allow` header names."),
    "too_large": ErrorCode(False, True, "Send a smaller body; the limit is in the message."),
    "rate_limited": ErrorCode(True, False, "Wait, then try again."),
    "internal": ErrorCode(True, False, "This is a bug in the service; its log has the details."),
}


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
    """An error with a code of `CODES`, a message for a person, and what exactly is wrong.

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
    """The one shape of an error, wherever it is stored or sent."""
    known = CODES[code]
    return {
        "code": code,
        **said(message),
        "hint": known.hint,
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
    """Training was asked to leave at a step boundary, saved a checkpoint, and left."""

    code = "cancelled"
