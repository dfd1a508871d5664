"""NVIDIA's HelpSteer: answers with scores, and pairs with the strength of a preference.

https://huggingface.co/datasets/nvidia/HelpSteer2: `prompt`, `response`, `helpfulness`, `correctness`, `coherence`,
`complexity`, `verbosity`, each 0 to 4; preferences with `response_1`, `response_2`, `preference_strength`, −3 to 3.
https://huggingface.co/datasets/nvidia/HelpSteer3: `context`, `response1`, `response2`, `overall_preference`, −3 to 3.
A negative strength prefers the first answer. A strength of 0 prefers neither, so such a row is not a pair.
"""

from typing import Any

from trainer_core.layouts import scored
from trainer_core.layouts.claims import Claim, Layout, Sample
from trainer_core.layouts.forms import Misfit
from trainer_core.layouts.two_answers import claim
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_rules import Row, shown
from trainer_core.wording import say

_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_PREFERENCES = (
    ("prompt", "response_1", "response_2", "preference_strength"),
    ("context", "response1", "response2", "overall_preference"),
)


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    if sample.has("prompt", "response", *_ATTRIBUTES[:2]):
        asked = (options.map or {}).get("label")
        column = asked if asked in sample.columns and asked else _ATTRIBUTES[0]
        if options.threshold is None:
            raise scored.ask(sample, [column, *(name for name in _ATTRIBUTES if name in sample.columns and name != column)])
        return scored.claim(sample, options, column, prompt="prompt", completion="response")
    return None


def preference_claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    for prompt, first, second, strength in _PREFERENCES:
        if sample.has(prompt, first, second, strength):
            return claim(sample, (first, second, strength), _is_first, prompt=prompt)
    return None


def _is_first(row: Row, value: Any) -> bool:
    strength = scored.as_score(value)
    if strength is None:
        raise Misfit("preferred", say("score", value=shown(value)))
    if strength == 0:
        raise Misfit("preferred", say("no_preference"))
    return strength < 0


LAYOUT = Layout("helpsteer", claims)
PREFERENCE = Layout("helpsteer_preference", preference_claims)
