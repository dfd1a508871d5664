"""ms-swift's preference format: `messages` that end with the chosen answer, and `rejected_response` or `rejected_messages`.

https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html#dpo-orpo-cpo-simpo-rm
Its KTO format (`messages`, `label`) is the same as LLaMA-Factory's; `sharegpt` reads it.
"""

from typing import Any

from trainer_core.layouts.claims import Claim, Layout, Sample, with_context
from trainer_core.layouts.forms import CONTEXT, Misfit, as_turns
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_rules import Row
from trainer_core.wording import say


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    rejected = [name for name in ("rejected_response", "rejected_messages") if name in sample.columns]
    if len(rejected) != 1 or "messages" not in sample.columns:
        return None
    mapping = with_context({"chosen": "messages", "rejected": rejected[0]}, sample)

    def fields(row: Row) -> Row:
        found: Row = {ours: row[mapping[ours]] for ours in CONTEXT if ours in mapping and mapping[ours] in row}
        found |= {"chosen": _whole(row["messages"])} if "messages" in row else {}
        return found | ({"rejected": row[rejected[0]]} if rejected[0] in row else {})

    return Claim(mapping, fields)


def _whole(messages: Any) -> Any:
    turns = as_turns("chosen", messages)
    if not isinstance(turns, list) or len(turns) < 2:
        raise Misfit("chosen", say("no_last_answer"))
    return turns


LAYOUT = Layout("swift", claims)
