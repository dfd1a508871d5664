"""Describes a run's effect on its model in words."""

from collections.abc import Mapping
from typing import Any

EFFECTS = {
    "changed": "the model changed",
    "hardly_changed": "the model hardly changed",
    "collapsed": "the model broke",
}
ROWS = {"validation": "validation rows", "held_back": "held-back rows", "training": "training rows"}
FORECASTS = {
    "changed": "it will probably change the model",
    "hardly_changed": "it will hardly change the model",
    "collapsed": "it will probably break the model",
}


def evidence_lines(evidence: Mapping[str, Any]) -> list[str]:
    """The evidence for a verdict, one fact per line. `evidence` is the metadata's `effect_evidence`."""
    lines = [f"measured on {evidence['rows']} {ROWS[evidence['rows_from']]}"]
    if any(evidence[name] is None for name in ("mean_kl", "shift") if name in evidence["decided_by"]):
        lines.append("its log-probabilities are not finite")
    elif evidence["mean_kl"] is not None:
        lines.append(f"KL divergence from the model before the run: {evidence['mean_kl']:.2g} nats per token")
    else:
        lines.append(f"shift of log-probabilities: {evidence['shift']:.2g} nats per token")
    if margin := evidence["margin"]:
        between = "" if margin["low"] is None else f" (95% interval: {margin['low']:.3g} to {margin['high']:.3g})"
        lines.append(f"reward margin: {margin['mean']:.3g}{between}")
    if samples := evidence["samples"]:
        differing = round(samples["differing"] * samples["prompts"])
        lines.append(
            f"sampled answers: {differing} of {samples['prompts']} differ; {samples['repetition']:.0%} is repetition "
            f"({samples['repetition_before']:.0%} before), {samples['foreign_script']:.0%} of letters in a foreign script, "
            f"length {samples['length_ratio']:.2g} times the expected one"
        )
    return lines
