"""The language of replies: what `Accept-Language` asks for, and events in words."""

from typing import Any, get_args

import pytest

from api.event_words import sentence
from api.language import preferred, speaking, worded_error, worded_warning
from jobs.states import Cause, Phase
from trainer_core.effect import Verdict
from trainer_core.errors import DataInvalid, Detail, error_dict
from trainer_core.wording import said, say, worded
from worker.warm_start import ColdReason

SAID: dict[str, Any] = {"attempt": 1}
DEVICE = {"name": "H200", "memory_before_bytes": 2**20, "memory_after_bytes": 3 * 2**20, "processes_left": []}
LOST = say("run_killed", signal="SIGKILL")
EVENTS: list[tuple[str, dict[str, Any], str]] = [
    ("queued", {}, "Queued"),
    ("queued", {"clone_of": "j"}, "Queued with an edited copy of job j's spec"),
    ("queued", {"rerun_of": "j", "from_checkpoint": False}, "Queued as a rerun of job j"),
    ("queued", {"rerun_of": "j", "from_checkpoint": True}, "Queued as a rerun of job j from its newest checkpoint"),
    ("claimed", {"attempt": 2, "worker": "host:7", "device": "cpu"}, "Attempt 2 started on worker host:7 (cpu)"),
    *(("phase", {"phase": phase.value}, "") for phase in Phase),
    ("data", {"report": {"rows_trained_on": 1}}, "Read 1 row for training"),
    ("metrics", {"step": 5, "values": {}}, "Metrics at step 5"),
    ("samples", {"step": 5, "samples": [{}, {}]}, "2 sampled answers at step 5"),
    ("checkpoint", {"step": 5}, "Checkpoint saved at step 5"),
    ("checkpoint_loaded", {"step": 5, "job_id": "j"}, "Resumed from the checkpoint at step 5"),
    ("first_step", {"step": 1}, "First step done"),
    ("first_step", {"start": "warm", "since_claim_s": 1.24}, "First step done 1.2 s after the claim, from a warm start"),
    *(("first_step", {"start": "cold", "reason": reason.value, "since_claim_s": 9}, "") for reason in ColdReason),
    *(("effect", {"effect": verdict}, "") for verdict in get_args(Verdict)),
    ("succeeded", {"device": {**DEVICE, "memory_before_bytes": None, "name": "cpu"}}, "Succeeded"),
    ("succeeded", {"device": DEVICE}, "Succeeded. H200 had 1 MiB in use before the run and 3 MiB after it"),
    ("paused", {"device": {**DEVICE, "processes_left": [7]}}, "Paused. 1 process of the run is still on H200"),
    (
        "failed",
        {"error": {"code": "oom_host", **said(say("run_out_of_memory"))}},
        "Failed: the run used up the machine's memory",
    ),
    ("failed", {"error": {"code": "internal", "message": "an old one"}}, "Failed: an old one"),
    ("cancelled", {"checkpoint": False, "checkpoint_step": None}, "Cancelled"),
    ("cancelled", {"checkpoint": True, "checkpoint_step": 4}, "Cancelled, with a checkpoint at step 4"),
    ("paused", {"checkpoint": True, "checkpoint_step": 4}, "Paused, with a checkpoint at step 4"),
    ("preempted", {"checkpoint": False}, "Returned to the queue because the worker was shut down"),
    ("preempted", {"checkpoint": True, "checkpoint_step": 4}, ""),
    ("worker_lost", {"reason": str(LOST), "reason_said": LOST.as_dict()}, ""),
    ("worker_lost", {"reason": "an old one"}, "Returned to the queue because the worker was lost: an old one"),
    ("resumed", {}, "Queued again to resume"),
    ("pause_requested", {}, "Pause requested"),
    ("cancel_requested", {}, "Cancel requested"),
    ("cancel_requested", {"save_checkpoint": True}, "Cancel requested; a checkpoint will be saved first"),
    ("artifacts_removed", {"kinds": ["log"], "files": 2, "freed_bytes": 1200}, "2 files deleted; 1,200 bytes freed"),
]


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("ar", "ar"),
        ("ar-EG", "ar"),
        ("AR", "ar"),
        ("en", "en"),
        ("*", "en"),
        ("fr", "en"),
        ("fr, ar;q=0.1", "ar"),
        ("en, ar", "en"),
        ("ar, en;q=0.9", "ar"),
        ("ar;q=0.5, en;q=0.8", "en"),
        ("ar;q=0, *", "en"),
        ("ar;q=0", "en"),
        ("ar;q=x", "en"),
        ("ar; q=0.9, *;q=0.1", "ar"),
        ("arz", "en"),
        (";;,,q=1", "en"),
    ],
)
def test_the_language_that_is_accepted_most(accepted: str, language: str) -> None:
    assert preferred(accepted) == language


@pytest.mark.parametrize(("kind", "data", "english"), EVENTS)
def test_an_event_has_a_sentence_in_both_languages(kind: str, data: dict[str, Any], english: str) -> None:
    found = sentence(kind, {**SAID, **data})
    assert found.code != "event.other"
    assert found == english or not english
    arabic = worded(found.code, found.as_dict()["params"], "ar")
    assert any("\u0600" <= letter <= "\u06ff" for letter in arabic)
    assert "{" not in arabic


def test_every_event_has_a_sentence() -> None:
    assert {kind for kind, _, _ in EVENTS} >= {cause.value for cause in Cause}
    assert sentence("unheard_of", {}).code == "event.other"
    assert sentence("phase", {}).code == "event.other", "an event of another version"


def test_stored_sentences_are_worded_when_they_are_sent() -> None:
    error = DataInvalid(say("dataset_no_skipped", id="d"), [Detail("x", say("value.missing")), Detail("y", "old")]).as_dict()
    with speaking("ar"):
        found = worded_error(error)
        assert found["message"] == worded("dataset_no_skipped", {"id": "d"}, "ar")
        assert found["hint"] == worded("hint.data_invalid", {}, "ar")
        assert [each["reason"] for each in found["details"]] == [worded("value.missing", {}, "ar"), "old"]
        assert {name: value for name, value in found.items() if name not in ("message", "hint", "details")} == {
            name: value for name, value in error.items() if name not in ("message", "hint", "details")
        }
        # Those of an earlier version have no code, or one that is gone, or other values.
        old = error_dict("internal", "as it was")
        assert worded_error(old)["message"] == "as it was"
        for code, params in (("long_gone", {}), ("dataset_no_skipped", {}), ("value.too_long", {"n": None})):
            assert worded_warning({"message": "as it was", "message_code": code, "params": params})["message"] == "as it was"
    assert worded_error(error) == error
