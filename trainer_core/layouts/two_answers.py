"""Two answers side by side and a column that says which is better. Some published layouts build on it. Any table can use
it with a `map` for `answer_1`, `answer_2` and `preferred`.
"""

from collections.abc import Callable
from typing import Any

from trainer_core.errors import DataInvalid
from trainer_core.layouts.claims import Claim, Layout, Sample, renaming, with_context
from trainer_core.layouts.forms import Misfit
from trainer_core.layouts.words import plain
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_rules import Row, shown
from trainer_core.wording import say

_FIRST = {
    plain(word) for word in ("1", "1.0", "a", "first", "answer 1", "answer a", "أ", "الأول", "الأولى", "الإجابة الأولى")
}
_SECOND = {
    plain(word) for word in ("2", "2.0", "b", "second", "answer 2", "answer b", "ب", "الثاني", "الثانية", "الإجابة الثانية")
}
_KNOWN = "1/2, A/B, first/second, أ/ب, الأولى/الثانية"


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    names = ("answer_1", "answer_2", "preferred")
    if not sample.has("prompt", *names) or sample.has_any("chosen", "rejected"):
        return None
    # Beside 1 and 2, a 0 says that neither is better; beside 1 alone, it may be the first answer or the second.
    has_two = any(plain(str(value)) in ("2", "2.0") for value in sample.values("preferred"))

    def is_first(row: Row, value: Any) -> bool:
        if not has_two and plain(str(value)) in ("0", "0.0"):
            raise DataInvalid.at("preferred", say("preferred_zero"))
        return which(row, value)

    return claim(sample, names, is_first, prompt="prompt")


def which(row: Row, value: Any) -> bool:
    """Whether the first answer is the preferred one. Raises `Misfit`."""
    word = plain(str(value).replace("_", " "))
    if word not in _FIRST | _SECOND:
        raise Misfit("preferred", say("preferred", known=_KNOWN, value=shown(value)))
    return word in _FIRST


def claim(
    sample: Sample,
    names: tuple[str, str, str],
    is_first: Callable[[Row, Any], bool],
    used: tuple[str, ...] = (),
    **mapping: str,
) -> Claim:
    """How to read rows with two answers.

    Args:
        names: the columns of the first answer, the second answer, and the better one.
        is_first: decides from the row and the third column's value whether the first answer is better. Raises `Misfit`.
        used: other columns that `is_first` reads.
    """
    first, second, preferred = names
    context = with_context(mapping, sample)
    rename = renaming(context)

    def fields(row: Row) -> Row:
        for name in names:
            if row.get(name) is None:
                raise Misfit("preferred" if name == preferred else name, say("missing"))
        good, bad = (first, second) if is_first(row, row[preferred]) else (second, first)
        return rename(row) | {"chosen": row[good], "rejected": row[bad]}

    return Claim({**context, "answer_1": first, "answer_2": second, "preferred": preferred}, fields, frozenset(used))


LAYOUT = Layout("two_answers", claims)
