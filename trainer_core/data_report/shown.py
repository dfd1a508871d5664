"""A verdict as JSON: every rule with its interval, and the shortcuts in words, with rows that show them and what to do."""

from collections.abc import Sequence
from typing import Any

from trainer_core.counter_sets import Pair
from trainer_core.data_report.intervals import LEVEL
from trainer_core.data_report.rows_kept import Sampled, Single
from trainer_core.data_report.rules import Rule
from trainer_core.data_report.shortcuts import BOUND, FEW_ROWS, Tried, Verdict
from trainer_core.wording import Message, said, say

_MOST_NAMED = 5
_SHOWN_ROWS = 3
_SHOWN_CHARACTERS = 300
_ADVICE = {
    "length": ("characters", "words", "sentences"),
    "marks": ("commas", "full_stops", "question_marks", "exclamation_marks", "other_punctuation", "western_marks"),
    "digits": ("western_digits", "arabic_indic_digits", "persian_digits"),
    "spelling": (
        *("diacritics", "tatweel", "hamza_letters", "ta_marbuta", "alef_maqsura", "persian_letters"),
        *("presentation_forms", "invisible_characters"),
    ),
    "format": ("line_breaks", "list_markers", "markdown_marks", "emoji"),
    "script": ("latin_letters", "mixed_script_words"),
    "prompt": ("repeated_prompt_words", "first_prompt_word_at"),
}
_ADVICE_OF = {trait: advice for advice, names in _ADVICE.items() for trait in names}


def shortcuts(verdict: Verdict, sample: Sequence[Sampled], rows: int) -> dict[str, Any]:
    """The verdict as JSON. Sentences have the form of `trainer_core.wording.said`."""
    is_pairs = bool(sample) and isinstance(sample[0].row, Pair)
    named = verdict.named[:_MOST_NAMED]
    note = _note(verdict, rows)
    return {
        "measure": "pairs" if is_pairs else "auc",
        "level": LEVEL,
        "bound": BOUND,
        "smallest_named": None if verdict.smallest is None else round(verdict.smallest, 4),
        "note": said(note) if note else None,
        "named": [_named(each, sample, is_pairs) for each in named],
        "more_named": len(verdict.named) - len(named),
        "none": None if named or verdict.rarer == 0 else said(say("shortcut.none", bound=percent(BOUND))),
        "rules": [_listed(each) for each in verdict.tried],
    }


def _note(verdict: Verdict, rows: int) -> Message | None:
    """What the rows could not have shown."""
    rarer, smallest = verdict.rarer, verdict.smallest
    if rarer == 0:
        return say("shortcut.one_label")
    if rarer is not None and rows >= FEW_ROWS and (smallest is None or 2 * rarer < FEW_ROWS):
        count = say("count.rows", n=rarer)
        if smallest is None:
            return say("shortcut.label_too_rare", count=count)
        return say("shortcut.label_rare", count=count, smallest=percent(smallest))
    if smallest is None:
        return say("shortcut.too_few_rows", n=rows)
    return say("shortcut.few_rows", n=rows, smallest=percent(smallest)) if rows < FEW_ROWS else None


def percent(share: float) -> float:
    """A share as a value of a sentence."""
    return round(100 * share, 1)


def in_words(tried: Tried) -> Message:
    """A rule as a phrase."""
    end = "more" if tried.more else "fewer"
    if tried.rule.word is None:
        what = tried.rule.what
        return say("rule.more", what=what) if tried.more else say("rule.fewer", what=what)
    return say(f"rule.{tried.rule.name.partition(':')[0]}_{end}", word=tried.rule.word)


def _listed(tried: Tried) -> dict[str, Any]:
    return {
        "rule": tried.rule.name,
        "direction": "more" if tried.more else "fewer",
        **said(in_words(tried)),
        "share": round(tried.share, 4),
        "low": round(tried.low, 4),
        "high": round(tried.high, 4),
        "differing": round(tried.differing, 4),
        "named": tried.is_named,
    }


def _named(tried: Tried, sample: Sequence[Sampled], is_pairs: bool) -> dict[str, Any]:
    values = {name: percent(share) for name, share in (("share", tried.share), ("low", tried.low), ("high", tried.high))}
    rule = in_words(tried)
    sentence = say("shortcut.pairs", rule=rule, **values) if is_pairs else say("shortcut.labels", rule=rule, **values)
    advice = "word" if tried.rule.word else _ADVICE_OF.get(tried.rule.name, "structure")
    return {
        **_listed(tried),
        **said(sentence),
        "advice": said(say(f"advice.{advice}")),
        "same": tried.agreeing,
        "following": tried.following,
        "examples": _examples(tried, sample),
    }


def _examples(tried: Tried, sample: Sequence[Sampled]) -> list[dict[str, Any]]:
    """Rows in which the trait tells: pairs that follow the rule, or rows of both labels with much and little of it."""
    measure = tried.rule.measure
    right = 1 if tried.more else -1
    if sample and isinstance(sample[0].row, Single):
        return [shown for label in (True, False) for shown in _of_label(tried.rule, sample, label, tried.more == label)]
    found: list[dict[str, Any]] = []
    for each in sample:
        row = each.row
        assert isinstance(row, Pair)
        amounts = measure(row.prompt, row.chosen), measure(row.prompt, row.rejected)
        if (amounts[0] - amounts[1]) * right > 0:
            texts = {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
            found.append({"row": each.line, **_short(texts), "amounts": list(amounts)})
        if len(found) == _SHOWN_ROWS:
            break
    return found


def _of_label(rule: Rule, sample: Sequence[Sampled], label: bool, has_more: bool) -> list[dict[str, Any]]:
    rows = [(each.line, each.row) for each in sample[:2000] if isinstance(each.row, Single) and each.row.label == label]
    measured = [(rule.measure(row.prompt, row.completion), line, row) for line, row in rows]
    measured.sort(key=lambda each: (-each[0] if has_more else each[0], each[1]))
    return [
        {"row": line, **_short({"prompt": row.prompt, "completion": row.completion}), "label": label, "amounts": [amount]}
        for amount, line, row in measured[:_SHOWN_ROWS]
    ]


def _short(texts: dict[str, str]) -> dict[str, str]:
    return {name: text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…" for name, text in texts.items()}
