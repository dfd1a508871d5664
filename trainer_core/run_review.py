"""What a run learned, measured after its last step: by slice, by shortcut, by spelling, and the rows that it got wrong.

Slices and the hardest rows come from scores that exist anyway. Shortcuts and spelling need more passes, whose number depends
on the length of the run, so that they take a few percent of its time. Draws none of the run's random numbers, and restores
the model's mode.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from trainer_core import shortcuts
from trainer_core.config import PreferenceConfig
from trainer_core.counter_sets import CounterSet, Pair, counter_set, without
from trainer_core.data_loader import PreferenceData
from trainer_core.effect import RowsFrom
from trainer_core.held_out import MOST_PROMPTS, prompts_of
from trainer_core.methods.base import PreferenceMethod
from trainer_core.observer import Observer
from trainer_core.row_rules import Row, text_of
from trainer_core.rows import pair_places
from trainer_core.scoring import Scores, score
from trainer_core.shortcuts import Shortcut
from trainer_core.slices import slices_of
from trainer_core.traits import WORD_START

SPELLINGS = ("hamza_letters", "ta_marbuta", "western_digits", "arabic_indic_digits", "diacritics", "tatweel")
"""Traits that are another spelling of the same words."""
MOST_HARD_ROWS = 20
FEWEST_ROWS = 10
"""The mean margin of fewer rows says little, so no share of it is given."""
# One reviewed answer for this many that the run trains on, and no review below this many answers.
_TRAINED_PER_REVIEWED = 20
_FEWEST_ANSWERS = 16
_METRICS = ("preference_accuracy", "margin_accuracy", "margin", "overall_accuracy", "mean_kl")


@dataclass(frozen=True)
class _Reviewed:
    """A prompt with its answers by name, as in the rows, and the places of these answers among those that are scored."""

    prompt: Any
    answers: dict[str, Any]
    places: dict[str, int]


@dataclass(frozen=True)
class _Swapped:
    """A shortcut's counter-set: the reviewed rows, and the places of their changed answers."""

    shortcut: Shortcut
    made: CounterSet
    rows: list[int]
    places: list[tuple[int, int]]


class RunReview:
    """The review for one run.

    Args:
        rows, rows_from: the rows that no step trains on, or training rows if there are no others.
        trained: how many rows the run trains on, counting each epoch.
    """

    def __init__(
        self,
        config: PreferenceConfig,
        method: PreferenceMethod[Any],
        data: PreferenceData,
        observer: Observer,
        *,
        rows: Sequence[Row],
        rows_from: RowsFrom,
        trained: int,
    ) -> None:
        self._config, self._method, self._data, self._observer = config, method, data, observer
        self._rows_from = rows_from
        self._held_out = [] if rows_from == "training" else _drawn(prompts_of(rows, data.names), MOST_PROMPTS, config.seed)
        self._scored: list[tuple[list[int], list[int]]] = []
        """Prompts and answers to score, as ids."""
        self._before: Scores | None = None
        most = min(config.review_rows, trained // _TRAINED_PER_REVIEWED)
        self._reviewed = self._sample(rows, most) if most >= _FEWEST_ANSWERS else []
        self._are_pairs = bool(self._reviewed) and "chosen" in self._reviewed[0].answers
        self._swapped = [self._swap(each) for each in shortcuts.named(data.train, config.seed)] if self._are_pairs else []
        self._twins = self._spelled() if self._reviewed else {}

    def note_start(self, model: Any) -> None:
        """Called before the first step if no copy of the model will be kept: records its scores."""
        if self._scored:
            self._before = self._score(model, None)

    def measure(self, model: Any, before: Any, rows: Sequence[Row], scores: Mapping[str, Scores]) -> dict[str, Any]:
        """Called after the last step. The result is JSON.

        Args:
            before: answers as the model did before the run (see `reference.model_of`); None if `note_start` was called.
            rows, scores: scored rows from the same source, for slices and hard rows.
        """
        found: dict[str, Any] = {
            "rows_from": self._rows_from,
            "rows": len(rows),
            "slices": _finite(slices_of(self._method, rows, scores, _METRICS)),
            "hardest_rows": self._hardest(rows, scores),
            "held_out_rows": [each.row for each in self._held_out],
            "reviewed_answers": sum(len(each.answers) for each in self._reviewed),
            "shortcuts": None,
            "spelling": None,
        }
        if not self._scored:
            return found
        after = self._score(model, before)
        earlier = after.ref_logps if self._before is None else self._before.logps
        if self._are_pairs:
            found["shortcuts"] = _finite(self._left(after, earlier))
        found["spelling"] = _finite(self._shifts(after.logps.tolist(), earlier.tolist()))
        return found

    # -- before the first step: what to score

    def _sample(self, rows: Sequence[Row], most: int) -> list[_Reviewed]:
        """Reviewed rows, drawn by seed: pairs if the rows are or come from pairs, otherwise single answers."""
        candidates: list[dict[str, Row]] = []
        if rows and "chosen" in rows[0]:
            candidates = [{"chosen": row, "rejected": row} for row in rows]
        elif places := pair_places(rows):
            candidates = [{"chosen": rows[chosen], "rejected": rows[rejected]} for chosen, rejected in places]
        else:
            candidates = [{"completion": row} for row in rows]
        found: list[_Reviewed] = []
        for each in _drawn(candidates, most // len(candidates[0]), self._config.seed) if candidates else []:
            prompt, prompt_ids = (next(iter(each.values()))[name] for name in ("prompt", "prompt_ids"))
            # A row of pairs has its answers by name; labelled rows have one each.
            fields = {side: side if side in row else "completion" for side, row in each.items()}
            answers = {side: each[side][field] for side, field in fields.items()}
            ids = {side: each[side][f"{field}_ids"] for side, field in fields.items()}
            # Answers that were cut have no counterpart that could be cut alike.
            if self._encoded(prompt, list(answers.values())) == (prompt_ids, list(ids.values())):
                places = {side: self._place(prompt_ids, own) for side, own in ids.items()}
                found.append(_Reviewed(prompt, answers, places))
        return found

    def _swap(self, shortcut: Shortcut) -> _Swapped:
        pairs = [Pair(text_of(each.prompt), *map(text_of, each.answers.values())) for each in self._reviewed]
        made = counter_set(shortcut.trait, pairs, chosen_has_more=shortcut.chosen_has_more)
        rows: list[int] = []
        places: list[tuple[int, int]] = []
        for row, (_, *texts) in zip(made.rows, made.pairs, strict=True):
            found = self._changed(self._reviewed[row], dict(zip(("chosen", "rejected"), texts, strict=True)))
            if found:
                rows.append(row)
                places.append((found["chosen"], found["rejected"]))
        return _Swapped(shortcut, made, rows, places)

    def _spelled(self) -> dict[str, list[tuple[int, int]]]:
        """By spelling, the places of answers and of their normalised twins."""
        twins: dict[str, list[tuple[int, int]]] = {}
        for name in SPELLINGS:
            trait = shortcuts.TRAIT_OF[name]
            for each in self._reviewed:
                for side, answer in each.answers.items():
                    text = text_of(answer)
                    twin = without(trait, text) if trait.measure("", text) else text
                    if twin != text and WORD_START.search(twin) and (found := self._changed(each, {side: twin})):
                        twins.setdefault(name, []).append((each.places[side], found[side]))
        return twins

    def _changed(self, reviewed: _Reviewed, texts: Mapping[str, str]) -> dict[str, int] | None:
        """The places of a reviewed row's answers with other texts; None if one no longer fits the limits."""
        answers = [_with_text(reviewed.answers[side], text) for side, text in texts.items()]
        prompt_ids, found = self._encoded(reviewed.prompt, answers)
        if any(len(prompt_ids) + len(ids) > self._config.max_length for ids in found):
            return None
        return {side: self._place(prompt_ids, ids) for side, ids in zip(texts, found, strict=True)}

    def _encoded(self, prompt: Any, answers: list[Any]) -> tuple[list[int], list[list[int]]]:
        renderer = self._data.renderer
        (found,) = renderer.encode_texts([renderer.texts(prompt, answers)])
        return found.prompt_ids, found.answers_ids

    def _place(self, prompt_ids: list[int], ids: list[int]) -> int:
        self._scored.append((prompt_ids, ids))
        return len(self._scored) - 1

    # -- after the last step

    def _score(self, model: Any, before: Any) -> Scores:
        prompts, answers = ([each[part] for each in self._scored] for part in (0, 1))
        size = 2 * self._config.per_device_eval_batch_size
        return score(model, before, prompts, {"answer": answers}, size, on_batch=self._observer.alive)["answer"]

    def _left(self, after: Scores, earlier: Any) -> list[dict[str, Any]]:
        """What each counter-set leaves of the margin."""
        ratios = (after.logps - earlier) / (after.tokens if self._config.reward == "averaged" else 1)
        rewards = (self._config.beta * ratios).tolist()
        margins = [rewards[each.places["chosen"]] - rewards[each.places["rejected"]] for each in self._reviewed]
        found: list[dict[str, Any]] = []
        for each in self._swapped:
            changed = [rewards[chosen] - rewards[rejected] for chosen, rejected in each.places]
            # Rows in which the trait points the other way are compared with all.
            own = margins if each.made.kind == "opposite_rows" else [margins[row] for row in each.rows]
            is_known = len(changed) >= FEWEST_ROWS and fmean(own) > 0
            found.append(
                {
                    "trait": each.shortcut.trait.name,
                    "chosen_has_more": each.shortcut.chosen_has_more,
                    "share": each.shortcut.share,
                    "counter_set": each.made.kind,
                    "rows": len(changed),
                    "margin": fmean(own) if own else None,
                    "margin_without": fmean(changed) if changed else None,
                    "margin_left": fmean(changed) / fmean(own) if is_known else None,
                }
            )
        return found

    def _shifts(self, after: list[float], earlier: list[float]) -> list[dict[str, Any]]:
        """How much more likely answers are than their normalised twins, in nats per answer, before and after."""
        found: list[dict[str, Any]] = []
        for name, twins in self._twins.items():
            before, now = (fmean(logps[own] - logps[twin] for own, twin in twins) for logps in (earlier, after))
            found.append({"spelling": name, "answers": len(twins), "before": before, "after": now, "shift": now - before})
        return found

    def _hardest(self, rows: Sequence[Row], scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
        """The rows with the highest loss, the highest first."""
        losses = self._method.row_losses(dict(scores), rows).tolist()
        order = sorted(range(len(rows)), key=lambda place: -losses[place] if math.isfinite(losses[place]) else -math.inf)
        return _finite(
            [
                {"row": self._data.names.short(rows[place]["row"]), "label": rows[place].get("label"), "loss": losses[place]}
                for place in order[:MOST_HARD_ROWS]
            ]
        )


def _drawn(values: Sequence[Any], most: int, seed: int) -> list[Any]:
    """At most this many of the values, in a seeded order."""
    return random.Random(f"review {seed}").sample(values, min(most, len(values)))


def _with_text(answer: Any, text: str) -> Any:
    """An answer, which is text or one message, with another text."""
    return text if isinstance(answer, str) else [{**answer[0], "content": text}]


def _finite(value: Any) -> Any:
    """JSON without numbers that are not finite."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
