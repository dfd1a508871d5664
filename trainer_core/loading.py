"""Wraps every load of a model's files, so that a failed load has a readable error."""

import errno
from pathlib import Path
from typing import Any

import torch

from trainer_core import model_files
from trainer_core.errors import ModelNotFound, ModelRefused, TafdilError
from trainer_core.wording import Message, say

_REASON_CHARACTERS = 500
_KINDS = {"adapter_name": "adapter", "resume_from_checkpoint": "checkpoint"}
# The text of these errors says what happened. Others also need their type: `KeyError: 'gelu_12'`.
_PLAIN_ERRORS = (OSError, ValueError, RuntimeError)
_MACHINE_ERRNOS = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE)


class loading:  # noqa: N801  # reads as a function: `with loading(path):`
    """Checks the files first, then turns whatever the libraries raise for missing or unsuitable files into our errors.

    Errors about memory, disk space or a device are not caused by the files, and pass through.

    Args:
        path: a directory, or a name on the hub.
        field: the config field that named it.
        needs_weights: see `model_files.check`.
    """

    def __init__(self, path: str, field: str = "model_name", needs_weights: bool = True) -> None:
        self._path, self._field, self._needs_weights = path, field, needs_weights

    def __enter__(self) -> None:
        model_files.check(self._path, self._field, self._needs_weights)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or is_of_the_machine(error):
            return
        reason = reason_of(error)
        if "DefaultCPUAllocator" in reason:
            raise MemoryError(reason) from error
        kind_name = say(f"kind.{_KINDS.get(self._field, 'model')}")
        if error.args and isinstance(error.args[0], Message):
            sentence = say("load_refused", kind=kind_name, name=self._path, reason=error.args[0])
            raise ModelRefused.at(self._field, sentence) from error
        # peft raises a ValueError for this.
        is_absent = isinstance(error, OSError) or "Can't find" in reason
        if is_absent and not Path(self._path).is_dir():
            sentence = say("load_not_found", kind=kind_name, name=self._path, problem=reason)
            raise ModelNotFound.at(self._field, sentence) from error
        sentence = say("load_failed", kind=kind_name, name=self._path, problem=reason)
        raise ModelRefused.at(self._field, sentence) from error


def is_of_the_machine(error: Exception) -> bool:
    """Whether an error is ours already, or about memory, disk space or a device, and so not caused by a model's files."""
    if isinstance(error, TafdilError | MemoryError | torch.OutOfMemoryError | torch.AcceleratorError):
        return True
    return isinstance(error, OSError) and error.errno in _MACHINE_ERRNOS


def reason_of(error: Exception) -> str:
    """An error's text, on one line of bounded length."""
    text = " ".join(str(error).split())
    if not isinstance(error, _PLAIN_ERRORS) or not text:
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= _REASON_CHARACTERS else f"{text[:_REASON_CHARACTERS]}…"
