"""The preference files of hosted services: `input` with `messages`, `preferred_output` and `non_preferred_output`.

https://platform.openai.com/docs/guides/direct-preference-optimization
"""

from trainer_core.layouts.claims import Claim, Layout, Sample, renaming, with_context
from trainer_core.layouts.forms import Misfit
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_rules import Row
from trainer_core.wording import say


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    if not sample.has_any("preferred_output", "non_preferred_output"):
        return None
    mapping = with_context({"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"}, sample)
    rename = renaming(mapping)

    def fields(row: Row) -> Row:
        found = rename(row)
        if "prompt" not in found:
            return found
        given = found["prompt"]
        if not (isinstance(given, dict) and "messages" in given):
            raise Misfit("prompt", say("no_messages"))
        if given.get("tools"):
            raise Misfit("prompt", say("tools"))
        return found | {"prompt": given["messages"]}

    return Claim(mapping, fields)


LAYOUT = Layout("hosted", claims)
