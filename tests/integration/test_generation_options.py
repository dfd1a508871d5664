"""What a comparison may be asked for: its length, which has a default that fits, and the options of generation."""

import inspect
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from jobs.service import ComparisonRequest
from tests.training import METHODS, PROMPT, config
from trainer_core import PreferenceTrainer
from trainer_core.comparison import ModelPair
from trainer_core.errors import DataInvalid, SpecInvalid
from worker import generation


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    trainer = PreferenceTrainer(config("ipo", tmp_path_factory.mktemp("pair")))
    trainer.load()
    return ModelPair(trainer.model, trainer._reference_for_scoring(), trainer.data_loader.renderer, 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_the_default_length_is_cut_to_what_the_model_reads(method: str, tmp_path: Path) -> None:
    """The shipped model reads 512 tokens, prompt and answer together, and the default asks for 512 new ones."""
    trainer = PreferenceTrainer(config(method, tmp_path))
    prompt = "كلمة " * 470
    answered = trainer.generate_with_comparison(prompt)
    tokens = len(trainer.data_loader.renderer.prompt_ids(prompt))
    room = 512 - tokens
    assert 0 < room < 30
    assert answered["trained_model_response"] == answered["reference_model_response"]
    for options in ({"max_length": 512}, {"max_new_tokens": 512}, {"max_length": room + 1}):
        with pytest.raises(DataInvalid, match=f"set max_length to {room} or less") as found:
            trainer.generate_with_comparison(prompt, **options)
        assert found.value.details[0].field == "max_length"
    assert trainer.generate_with_comparison(prompt, max_length=room) == answered
    with pytest.raises(DataInvalid, match="the model reads at most 512"):
        trainer.generate_with_comparison("كلمة " * 600)


def test_the_names_and_kinds_of_the_length(pair: ModelPair, tmp_path: Path) -> None:
    trainer = PreferenceTrainer(config("ipo", tmp_path))
    one = trainer.generate_with_comparison(PROMPT, max_length=3)
    assert trainer.generate_with_comparison(PROMPT, max_new_tokens=3) == one
    assert trainer.generate_with_comparison(PROMPT, max_length=None, max_new_tokens=3) == one  # type: ignore[arg-type]
    with pytest.raises(SpecInvalid, match="max_length and max_new_tokens both set"):
        trainer.generate_with_comparison(PROMPT, max_length=512, max_new_tokens=3)
    for wrong in (0, -1, 2.5, "3", True):
        with pytest.raises(SpecInvalid, match=r"max_length is .* whole number of at least 1"):
            trainer.generate_with_comparison(PROMPT, max_length=wrong)  # type: ignore[arg-type]
    default = inspect.signature(PreferenceTrainer.generate_with_comparison).parameters["max_length"]
    assert str(default) == "max_length: int = 512"


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"seed": -1},
        {"seed": "x"},
        {"seed": 1.5},
        {"do_sample": "yes"},
        {"top_p": 2, "temperature": 1},
        {"top_p": 0, "temperature": 1},
        {"top_k": -1, "temperature": 1},
        {"top_k": 1.5, "temperature": 1},
        {"min_p": 7, "temperature": 1},
        {"typical_p": 0, "temperature": 1},
        {"repetition_penalty": 0},
        {"repetition_penalty": -2.0},
        {"repetition_penalty": "much"},
        {"no_repeat_ngram_size": -3},
        {"num_beams": 0},
        {"num_beams": 2.5},
        {"num_return_sequences": 0},
        {"num_return_sequences": 2},
        {"length_penalty": float("inf")},
        {"min_new_tokens": -1},
        {"max_time": 0},
        {"streamer": 5},
        {"temperature": 1e-300},
        {"custom_generate": "somebody/else"},
        {"past_key_values": 3},
    ],
)
def test_options_that_cannot_be_meant_are_refused_by_name(pair: ModelPair, wrong: dict[str, Any]) -> None:
    name = next(iter(wrong))
    with pytest.raises(SpecInvalid, match=name) as found:
        pair.compare(PROMPT, max_new_tokens=2, **wrong)
    assert found.value.details[0].field == name


def test_numbers_of_other_libraries_are_options(pair: ModelPair) -> None:
    plain = pair.compare(PROMPT, max_new_tokens=3, temperature=0.5, seed=4, top_k=5)
    other = pair.compare(
        PROMPT, max_new_tokens=np.int64(3), temperature=np.float32(0.5), seed=np.int64(4), top_k=torch.tensor(5)
    )
    assert other == plain
    assert pair.compare(PROMPT, max_new_tokens=3, temperature=None).seed is None
    with pytest.raises(SpecInvalid, match="do_sample=false always takes"):
        pair.compare(PROMPT, max_new_tokens=3, temperature=0.7, do_sample=False)


def test_a_request_without_a_length_is_answered_with_what_fits(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    warm = SimpleNamespace(get=lambda *_: ("ipo", pair), forget=lambda _: None)
    monkeypatch.setattr(generation, "_warm_pairs", lambda _: warm)
    monkeypatch.setattr(generation, "model_directory", lambda *_: Path())
    monkeypatch.setattr(generation.jobs, "get", lambda *_: SimpleNamespace(id="j", artifact_path="x"))

    def answered(**sent: Any) -> dict[str, Any]:
        request = ComparisonRequest(prompt="كلمة " * 470, **sent).model_dump()
        desk: Any = SimpleNamespace(
            task=SimpleNamespace(job_id="j", request=request),
            database=SimpleNamespace(reading=nullcontext),
            settings=None,
            tell=lambda _: None,
        )
        return generation._answer(desk)

    assert answered()["prompt"] == "كلمة " * 470
    assert answered(max_length=4)["trained_model_response"]
    with pytest.raises(DataInvalid, match="max_length asks for 256 more"):
        answered(max_length=256)
