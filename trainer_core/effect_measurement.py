"""Measures what a run did to its model: scores held-out rows and answers some of their prompts, before and after.

Draws no random numbers and restores the model's mode, so a resumed run still ends exactly like an uninterrupted one.
"""

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from trainer_core import effect
from trainer_core.config import PreferenceConfig
from trainer_core.data_loader import PreferenceData
from trainer_core.effect import Answers, Effect, Evidence, RowsFrom
from trainer_core.methods.base import PreferenceMethod
from trainer_core.observer import Observer
from trainer_core.reference import model_of, side_of
from trainer_core.row_rules import Row, comparable, text_of
from trainer_core.samples import Sample, answer, repetition, said
from trainer_core.scoring import Scores, score

MAX_ROWS = 64
MAX_PROMPTS = 4
# Belongs to another row's prompt; the model never trains on it as an answer.
_MISMATCHED = "KL_completion"


class EffectMeasurement:
    """The measurement for one run.

    Args:
        data: the loaded data.
        is_half: whether the model's weights are bf16 or fp16, so that scores round.
        autocast: the dtype in which a model with float32 weights generates; None: float32. Training puts the model under
            autocast, and answers before and after the run must be generated alike.
    """

    def __init__(
        self,
        config: PreferenceConfig,
        method: PreferenceMethod[Any],
        data: PreferenceData,
        observer: Observer,
        *,
        is_half: bool,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._autocast = autocast
        self._bounds = effect.HALF_BOUNDS if is_half else effect.BOUNDS
        self._config, self._method, self._data, self._observer = config, method, data, observer
        self.rows_from: RowsFrom
        self.rows, self.rows_from = measured_rows(data, config.seed)
        self.prompts = self._measured_prompts()
        self.scores: dict[str, Scores] = {}
        """Those of the rows after the run, once measured."""
        self._scores_before: dict[str, Scores] = {}
        self._answers_before: list[Sample] = []

    def note_start(self, model: Any) -> None:
        """Called before the first step if no copy of the model will be kept: records its scores and answers."""
        self._scores_before, self._answers_before = self._scores(model, None), self._answers(model)

    def measure(self, model: Any, before: Any) -> Effect:
        """Called after the last step.

        Args:
            before: answers as the model did before the run (see `reference.model_of`); None if `note_start` was called.
        """
        scores = self._scores(model, before)
        if before is None:
            scores = {name: replace(found, ref_logps=self._scores_before[name].logps) for name, found in scores.items()}
        self.scores = scores
        tokens = sum(found.tokens.sum().item() for found in scores.values())
        kl = sum(found.kl.sum().item() for found in scores.values()) / tokens
        evidence = Evidence(
            rows_from=self.rows_from,
            rows=len(self.rows),
            # A KL divergence is never negative, but its float32 sum may be, by rounding.
            mean_kl=None if before is None else 0.0 if kl < 0 else kl,
            shift=sum(found.ratios.abs().sum().item() for found in scores.values()) / tokens,
            margin=self._method.margin(scores, self.rows),
            samples=self._samples(model, before) if self.prompts else None,
        )
        return effect.judge(evidence, self._bounds)

    def _samples(self, model: Any, before: Any) -> effect.Samples:
        after, earlier = self._answers(model), self._answers_before
        if before is not None:
            with side_of(before):
                earlier = self._answers(model_of(before))
        prompts = [text_of(prompt) for prompt in self.prompts]
        tag = self._data.renderer.thoughts_tag
        return effect.compared(prompts, _answers(earlier, tag), _answers(after, tag), self._wanted())

    def _wanted(self) -> Answers:
        """The wanted answers of the measured rows."""
        name = "chosen" if "chosen" in self.rows[0] else "completion"
        wanted = [row for row in self.rows if row.get("label", True)]
        return Answers([text_of(row[name]) for row in wanted], [len(row[f"{name}_ids"]) for row in wanted], [])

    def _scores(self, model: Any, start: Any) -> dict[str, Scores]:
        names = [name for name in self._method.answers if name != _MISMATCHED]
        answers = {name: [row[f"{name}_ids"] for row in self.rows] for name in names}
        prompts = [row["prompt_ids"] for row in self.rows]
        size = self._config.per_device_eval_batch_size
        return score(model, start, prompts, answers, size, on_batch=self._observer.alive)

    def _answers(self, model: Any) -> list[Sample]:
        if not self.prompts:
            return []
        half = torch.autocast(model.device.type, self._autocast) if self._autocast else nullcontext()
        with half:
            found = answer(model, self._data.renderer, self.prompts, self._config.sample_max_length)
        self._observer.alive()
        return found

    def _measured_prompts(self) -> list[Any]:
        """Distinct prompts of the rows that fit `max_prompt_length`; none if no samples are wanted."""
        if not self._config.sample_generations:
            return []
        distinct = {comparable(row["prompt"]): row["prompt"] for row in self.rows}
        longest = self._config.max_prompt_length
        fitting = (one for one in distinct.values() if len(self._data.renderer.prompt_ids(one)) <= longest)
        return [prompt for prompt, _ in zip(fitting, range(MAX_PROMPTS), strict=False)]


def measured_rows(data: PreferenceData, seed: int) -> tuple[list[Row], RowsFrom]:
    """At most `MAX_ROWS` of the `unseen_rows`, drawn by seed."""
    rows, rows_from = unseen_rows(data)
    chosen = random.Random(seed).sample(range(len(rows)), min(MAX_ROWS, len(rows)))
    return [rows[place] for place in sorted(chosen)], rows_from


def unseen_rows(data: PreferenceData) -> tuple[Sequence[Row], RowsFrom]:
    """All rows that training never saw; training rows if there are no others."""
    sources: dict[RowsFrom, Sequence[Row]] = {
        "validation": data.validation,
        "held_back": data.held_back,
        "training": data.train,
    }
    rows_from: RowsFrom = next(name for name, rows in sources.items() if rows)
    return sources[rows_from], rows_from


def _answers(samples: Sequence[Sample], tag: str) -> Answers:
    ids = [sample.response_ids for sample in samples]
    texts = [said(sample.response, tag) for sample in samples]
    lengths = [len(one) if text else 0 for one, text in zip(ids, texts, strict=True)]
    return Answers(texts, lengths, [repetition(one) for one in ids])
