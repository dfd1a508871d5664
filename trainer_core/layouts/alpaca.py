"""LLaMA-Factory's alpaca format for preferences: `instruction`, optional `input`, `system` and `history`, and either
`chosen` and `rejected`, or `output` and `kto_tag`.

https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md#alpaca-format
"""

from trainer_core.layouts.claims import Claim, Layout, Sample, renaming, with_context
from trainer_core.layouts.forms import Misfit
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_rules import Row
from trainer_core.wording import say


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    if "instruction" not in sample.columns or sample.has_any("prompt", "question", "messages", "conversations"):
        return None
    if sample.has("chosen", "rejected"):
        names = {"chosen": "chosen", "rejected": "rejected"}
    elif sample.has("output", "kto_tag"):
        names = {"completion": "output", "label": "kto_tag"}
    else:
        return None
    mapping = with_context({"prompt": "instruction", **names}, sample)
    rename = renaming(mapping)

    def fields(row: Row) -> Row:
        found, more = rename(row), row.get("input")
        if more in (None, "") or "prompt" not in found:
            return found
        if not isinstance(more, str) or not isinstance(found["prompt"], str):
            raise Misfit("prompt", say("not_joined"))
        return found | {"prompt": f"{found['prompt']}\n{more}" if found["prompt"] else more}

    return Claim(mapping, fields, frozenset({"input"}))


LAYOUT = Layout("alpaca", claims)
