"""Several answers with scores in each row. The best and the worst make a pair.

https://huggingface.co/datasets/openbmb/UltraFeedback: `instruction`, `completions`, each with `response`, `overall_score`.
https://distilabel.argilla.io: `input` or `instruction`, `generations`, and `rating` or `ratings`, a number for each.
"""

from typing import Any

from trainer_core.layouts.claims import Claim, Layout, Sample, renaming, with_context
from trainer_core.layouts.forms import Misfit
from trainer_core.layouts.scored import as_score
from trainer_core.reading_options import ReadingOptions
from trainer_core.row_rules import Row
from trainer_core.wording import say

_PROMPTS = ("prompt", "instruction", "input", "question")


def claims(sample: Sample, options: ReadingOptions) -> Claim | None:
    prompts = [name for name in _PROMPTS if name in sample.columns]
    if len(prompts) != 1 or sample.has_any("chosen", "rejected"):
        return None
    ratings = [name for name in ("rating", "ratings") if sample.every(name, lambda value: isinstance(value, list))]
    if len(ratings) == 1 and sample.every("generations", lambda value: isinstance(value, list)):
        answers, scores = "generations", ratings[0]
    elif sample.every("completions", _is_scored):
        answers = scores = "completions"
    else:
        return None
    context = with_context({"prompt": prompts[0]}, sample)
    rename = renaming(context)

    def fields(row: Row) -> Row:
        if answers not in row or scores not in row:
            raise Misfit("chosen", say("missing"))
        best, worst = _ends(row[answers], row[scores])
        return rename(row) | {"chosen": best, "rejected": worst}

    mapping = {**context, "chosen": answers, "rejected": answers}
    return Claim(mapping, fields, frozenset({answers, scores}))


def _is_scored(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) and {"response", "overall_score"} <= each.keys() for each in value
    )


def _ends(answers: Any, scores: Any) -> tuple[Any, Any]:
    """The answers with the highest and the lowest score. Raises `Misfit` if there is a tie for either."""
    if answers is scores and _is_scored(scores):
        answers, scores = ([each[name] for each in scores] for name in ("response", "overall_score"))
    if not (isinstance(answers, list) and isinstance(scores, list)):
        raise Misfit("chosen", say("no_scores"))
    numbers = [as_score(score) for score in scores]
    if len(numbers) != len(answers) or len(numbers) < 2 or None in numbers:
        raise Misfit("chosen", say("no_scores"))
    known = [number for number in numbers if number is not None]
    if known.count(max(known)) > 1 or known.count(min(known)) > 1:
        raise Misfit("chosen", say("no_preference"))
    return answers[known.index(max(known))], answers[known.index(min(known))]


LAYOUT = Layout("generations", claims)
