"""PKU-SafeRLHF: two answers, and the numbers of the more helpful and the safer one.

https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF: `prompt`, `response_0`, `response_1`, `better_response_id`,
`safer_response_id`. If the two numbers differ, `map` must choose one: `preferred`: `safer_response_id`.
"""

from typing import Any

from trainer_core.errors import DataUnclear
from trainer_core.layouts.claims import Claim, Layout, Sample, unclear
from trainer_core.layouts.forms import Misfit
from trainer_core.layouts.two_answers import claim
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_rules import Row, shown
from trainer_core.wording import say

_VERDICTS = ("better_response_id", "safer_response_id")


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    verdicts = [name for name in _VERDICTS if name in sample.columns]
    if not verdicts or not sample.has("prompt", "response_0", "response_1"):
        return None
    asked = (options.map or {}).get("preferred")
    is_open = asked not in verdicts
    if not is_open:
        verdicts = [name for name in verdicts if name == asked]

    def is_first(row: Row, value: Any) -> bool:
        if is_open and _differ(row):
            raise ask((row,))
        number = str(value)
        if number not in ("0", "1", "0.0", "1.0"):
            raise Misfit("preferred", say("answer_number", value=shown(value)))
        return number.startswith("0")

    differing = [row for row in sample.rows if _differ(row)]
    if len(verdicts) == 2 and differing:
        raise ask(differing)
    return claim(sample, ("response_0", "response_1", verdicts[0]), is_first, tuple(verdicts), prompt="prompt")


def _differ(row: Row) -> bool:
    better, safer = (row.get(name) for name in _VERDICTS)
    return better is not None and safer is not None and better != safer


def ask(rows: Any) -> DataUnclear:
    return unclear("map", "verdict_unclear", _VERDICTS, {"preferred": _VERDICTS[0]}, rows)


LAYOUT = Layout("pku", claims)
