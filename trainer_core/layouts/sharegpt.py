"""LLaMA-Factory's sharegpt format for preferences: the turns before the answer in `conversations` (`from`, `value`) or
`messages` (`role`, `content`), with `chosen` and `rejected`, or with the answer as the last turn and a `kto_tag`.

https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md#sharegpt-format
"""

from trainer_core.layouts.claims import Claim, Layout, Sample, renamed, renaming, with_context
from trainer_core.layouts.forms import Misfit, as_turns
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_rules import Row
from trainer_core.wording import say


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    turns = [name for name in ("conversations", "messages") if name in sample.columns]
    if len(turns) != 1 or sample.has_any("prompt", "instruction", "question", "input", "completion"):
        return None
    if sample.has("chosen", "rejected"):
        if turns == ["messages"] and sample.has_whole:
            return None
        return renamed(sample, prompt=turns[0], chosen="chosen", rejected="rejected")
    labels = [name for name in ("kto_tag", "label") if name in sample.columns]
    if len(labels) != 1 or sample.has_any("rejected_response", "rejected_messages"):
        return None
    return labelled(sample, turns[0], labels[0])


def labelled(sample: Sample, turns: str, label: str) -> Claim:
    """Conversations whose last turn is the labelled answer."""
    mapping = with_context({"completion": turns, "label": label}, sample)
    rename = renaming(mapping)

    def fields(row: Row) -> Row:
        found = rename(row)
        if "completion" in found:
            whole = as_turns("completion", found["completion"])
            if not isinstance(whole, list) or len(whole) < 2:
                raise Misfit("completion", say("no_last_answer"))
            found["completion"] = whole
        return found

    return Claim(mapping, fields)


LAYOUT = Layout("sharegpt", claims)
