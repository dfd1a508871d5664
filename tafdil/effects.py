"""Describes in words what a run did to its model and what it learned."""

from collections.abc import Mapping
from typing import Any

from trainer_core.wording import Message, rounded, say

EFFECTS = {
    "changed": "the model changed",
    "hardly_changed": "the model hardly changed",
    "collapsed": "the model broke",
}
FORECASTS = {
    "changed": "it will probably change the model",
    "hardly_changed": "it will hardly change the model",
    "collapsed": "it will probably break the model",
}

_HARDEST_SHOWN = 5


def evidence_lines(evidence: Mapping[str, Any]) -> list[Message]:
    """The evidence for a verdict, one fact per line. `evidence` is the metadata's `effect_evidence`."""
    lines = [say(f"evidence.measured.{evidence['rows_from']}", n=evidence["rows"])]
    if any(evidence[name] is None for name in ("mean_kl", "shift") if name in evidence["decided_by"]):
        lines.append(say("evidence.not_finite"))
    elif evidence["mean_kl"] is not None:
        lines.append(say("evidence.kl", value=rounded(evidence["mean_kl"], 2)))
    else:
        lines.append(say("evidence.shift", value=rounded(evidence["shift"], 2)))
    if margin := evidence["margin"]:
        found = {name: rounded(value) for name, value in margin.items() if value is not None}
        lines.append(say("evidence.margin" if "low" in found else "evidence.margin_alone", **found))
    if samples := evidence["samples"]:
        shares = {"repetition": "repetition", "before": "repetition_before", "script": "foreign_script"}
        lines.append(
            say(
                "evidence.samples",
                differing=round(samples["differing"] * samples["prompts"]),
                of=samples["prompts"],
                ratio=rounded(samples["length_ratio"], 2),
                **{name: round(100 * samples[key]) for name, key in shares.items()},
            )
        )
    return lines


def review_lines(review: Mapping[str, Any]) -> list[Message]:
    """What the run learned, one fact per line. `review` is the metadata's."""
    lines = [
        say("learned.shortcut", trait=say(f"trait.{each['trait']}"), left=round(100 * each["margin_left"]), n=each["rows"])
        for each in review["shortcuts"] or ()
        if each["margin_left"] is not None
    ]
    if hardest := [str(each["row"]) for each in review["hardest_rows"][:_HARDEST_SHOWN]]:
        lines.append(say("learned.hardest", rows=", ".join(hardest)))
    return lines
