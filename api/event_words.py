"""Describes a job's events in words: a sentence made from an event's type and data."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from api.language import worded_warning
from trainer_core.wording import Message, restored, said, say

_MIB = 2**20
Data = Mapping[str, Any]


def shown(kind: str, data: Data) -> dict[str, Any]:
    """An event's data with its sentence in the reply's language. A warning brings its own sentence."""
    return worded_warning(data if kind == "warning" else {**data, **said(sentence(kind, data))})


def sentence(kind: str, data: Data) -> Message:
    """The sentence of an event, or only its name if another version wrote its data."""
    with suppress(KeyError, TypeError, AttributeError):
        what = _SENTENCES[kind](data)
        device = _device(data.get("device"))
        return say("event.on_device", what=what, device=device) if device else what
    return say("event.other", type=kind)


def _queued(data: Data) -> Message:
    if "clone_of" in data:
        return say("event.queued_clone", id=data["clone_of"])
    if "rerun_of" in data:
        code = "event.queued_from_checkpoint" if data.get("from_checkpoint") else "event.queued_rerun"
        return say(code, id=data["rerun_of"])
    return say("event.queued")


def _claimed(data: Data) -> Message:
    return say("event.claimed", attempt=data["attempt"], worker=data["worker"], device=data["device"])


def _first_step(data: Data) -> Message:
    if "start" not in data:
        return say("event.first_step")
    seconds = round(data["since_claim_s"], 1)
    if data["start"] == "warm":
        return say("event.first_step_warm", seconds=seconds)
    return say("event.first_step_cold", seconds=seconds, reason=say(f"cold.{data['reason']}"))


def _ended(kind: str) -> Callable[[Data], Message]:
    """Words for an end that may leave a checkpoint."""

    def ended(data: Data) -> Message:
        is_saved = data.get("checkpoint") and data.get("checkpoint_step") is not None
        what = say(f"event.{kind}_saved", step=data["checkpoint_step"]) if is_saved else say(f"event.{kind}")
        return _because(what, data)

    return ended


def _because(what: Message, data: Data) -> Message:
    """A pause, with the limit that caused it if it was not a person."""
    return say("event.because", what=what, reason=say(f"limit.{data['because']}")) if "because" in data else what


def _device(report: Any) -> Message | None:
    """What was seen on a GPU after an attempt; None if there is nothing to say."""
    if not isinstance(report, Mapping) or report.get("memory_before_bytes") is None:
        return None
    if report["processes_left"]:
        return say("device.left", n=len(report["processes_left"]), name=report["name"])
    if report["memory_after_bytes"] is None:
        return None
    before, after = (round(report[f"memory_{when}_bytes"] / _MIB) for when in ("before", "after"))
    return say("device.memory", name=report["name"], before=before, after=after)


def _lost(data: Data) -> Message:
    return say("event.worker_lost", reason=data.get("reason_said") or data["reason"])


def _removed(data: Data) -> Message:
    return say("event.artifacts_removed", n=data["files"], size=data["freed_bytes"])


def _cancel_requested(data: Data) -> Message:
    return say("event.cancel_requested_saving" if data.get("save_checkpoint") else "event.cancel_requested")


_SENTENCES: dict[str, Callable[[Data], Message]] = {
    "queued": _queued,
    "claimed": _claimed,
    "phase": lambda data: say(f"event.phase_{data['phase']}"),
    "data": lambda data: say("event.data", n=data["report"]["rows_trained_on"]),
    "metrics": lambda data: say("event.metrics", step=data["step"]),
    "samples": lambda data: say("event.samples", n=len(data["samples"]), step=data["step"]),
    "checkpoint": lambda data: say("event.checkpoint", step=data["step"]),
    "checkpoint_loaded": lambda data: say("event.checkpoint_loaded", step=data["step"]),
    "first_step": _first_step,
    "effect": lambda data: say(f"event.effect_{data['effect']}"),
    "review": lambda data: say("event.review", n=data["review"]["rows"]),
    "succeeded": lambda _: say("event.succeeded"),
    "failed": lambda data: say("event.failed", reason=restored(data["error"])),
    "cancelled": _ended("cancelled"),
    "paused": _ended("paused"),
    "preempted": _ended("preempted"),
    "worker_lost": _lost,
    "resumed": lambda _: say("event.resumed"),
    "pause_requested": lambda data: _because(say("event.pause_requested"), data),
    "cancel_requested": _cancel_requested,
    "artifacts_removed": _removed,
}
