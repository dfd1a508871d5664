"""From what was kept of the rows to the verdict about shortcuts."""

from collections.abc import Sequence
from typing import cast

from trainer_core.counter_sets import Pair
from trainer_core.data_report import intervals
from trainer_core.data_report.intervals import Measured
from trainer_core.data_report.rows_kept import SEED, Numbers, Sampled, Single, marked
from trainer_core.data_report.rules import TRAIT_RULES, Rule, word_rules
from trainer_core.data_report.shortcuts import Numbers as Found
from trainer_core.data_report.shortcuts import Verdict, couples_of_labels, couples_of_pairs, verdict


def judge(numbers: Sequence[Numbers], sample: Sequence[Sampled]) -> Verdict:
    """Tries the rules about traits on all rows, and those about words on the sample."""
    is_pairs = bool(sample) and isinstance(sample[0].row, Pair)
    found = [*(_of_pairs if is_pairs else _of_labels)(numbers), *_of_words(sample)]
    if is_pairs:
        couples = couples_of_pairs([cast("Pair", each.row) for each in sample], SEED)
        return verdict(found, couples)
    labelled = [cast("Single", each.row) for each in sample]
    wanted = [(row.prompt, row.completion) for row in labelled if row.label]
    unwanted = [(row.prompt, row.completion) for row in labelled if not row.label]
    desirable = sum(bool(each.label) for each in numbers)
    return verdict(found, couples_of_labels(wanted, unwanted, SEED), min(desirable, len(numbers) - desirable))


def _of_pairs(numbers: Sequence[Numbers]) -> list[Found]:
    prompts = [each.prompt_key for each in numbers]
    columns = zip(*(each.values for each in numbers), strict=True)
    return [
        _pair_rule(rule, cast("Sequence[int]", column), prompts) for rule, column in zip(TRAIT_RULES, columns, strict=True)
    ]


def _pair_rule(rule: Rule, marks: Sequence[int], prompts: Sequence[int]) -> Found:
    return rule, intervals.share_of_pairs(marks, prompts), 1 - sum(mark == 1 for mark in marks) / len(marks)


def _of_labels(numbers: Sequence[Numbers]) -> list[Found]:
    prompts, labels = [each.prompt_key for each in numbers], [bool(each.label) for each in numbers]
    columns = zip(*(each.values for each in numbers), strict=True)
    measured = [_label_rule(rule, column, labels, prompts) for rule, column in zip(TRAIT_RULES, columns, strict=True)]
    return [each for each in measured if each]


def _label_rule(rule: Rule, values: Sequence[float], labels: Sequence[bool], prompts: Sequence[int]) -> Found | None:
    measured: Measured | None = intervals.auc(values, labels, prompts)
    return (rule, measured, intervals.differing(values, labels)) if measured else None


def _of_words(sample: Sequence[Sampled]) -> list[Found]:
    if not sample:
        return []
    prompts = [each.prompt_key for each in sample]
    if isinstance(sample[0].row, Pair):
        pairs = [cast("Pair", each.row) for each in sample]
        rules = word_rules([answer for pair in pairs for answer in (pair.chosen, pair.rejected)])
        columns = zip(*([marked(rule.measure, pair) for rule in rules] for pair in pairs), strict=True)
        return [_pair_rule(rule, marks, prompts) for rule, marks in zip(rules, columns, strict=True)]
    rows = [cast("Single", each.row) for each in sample]
    labels = [row.label for row in rows]
    rules = word_rules([row.completion for row in rows])
    values = zip(*([rule.measure(row.prompt, row.completion) for rule in rules] for row in rows), strict=True)
    measured = [_label_rule(rule, column, labels, prompts) for rule, column in zip(rules, values, strict=True)]
    return [each for each in measured if each]
