"""Stanford Human Preferences: a post, two replies, and `labels`: 1 if the first reply is preferred, otherwise 0.

https://huggingface.co/datasets/stanfordnlp/SHP: `history`, `human_ref_A`, `human_ref_B`, `labels`.
"""

from typing import Any

from trainer_core.layouts.claims import Claim, Layout, Sample
from trainer_core.layouts.forms import Misfit, label_of
from trainer_core.layouts.two_answers import claim
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_rules import Row, shown
from trainer_core.wording import say


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    if not sample.has("history", "human_ref_A", "human_ref_B", "labels"):
        return None
    return claim(sample, ("human_ref_A", "human_ref_B", "labels"), _is_first, prompt="history")


def _is_first(row: Row, value: Any) -> bool:
    try:
        return label_of(value)
    except Misfit:
        raise Misfit("preferred", say("answer_number", value=shown(value))) from None


LAYOUT = Layout("shp", claims)
