"""What a comparison may be asked for: its length, which has a default that fits, and the options of generation."""

import inspect
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from jobs.comparisons import ComparisonRequest
from jobs.settings import Settings
from jobs.states import TaskKind
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
    with pytest.raises(DataInvalid, match="the model accepts at most 512"):
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


class OneWarmPair:
    """The cache of a worker, with one pair that fails."""

    class Pair:
        def compare(self, *_: Any, **__: Any) -> None:
            try:
                self.forward()
            except RuntimeError as error:
                raise SpecInvalid.at("prompt", "it is refused") from error

        def forward(self) -> None:
            raise RuntimeError("as a model that runs out of memory")

    def __init__(self) -> None:
        self._pairs = {"j": self.Pair()}
        self.is_alive = weakref.ref(self._pairs["j"])
        self.names = ["j"]

    def get(self, name: str, _: Path) -> tuple[str, Any]:
        return "ipo", self._pairs[name]

    def forget(self, name: str) -> None:
        self._pairs.pop(name, None)


def desk_for(request: dict[str, Any], **settings: Any) -> Any:
    return SimpleNamespace(
        task=SimpleNamespace(job_id="j", kind=TaskKind.COMPARE, request=request),
        settings=Settings(**settings),
        tell=lambda _: None,
    )


def test_a_comparison_that_fails_leaves_no_model_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is given back once nothing holds the models, and the error's frames hold them too."""
    warm, held = OneWarmPair(), list[bool]()
    monkeypatch.setattr(generation, "_warm", warm)
    monkeypatch.setattr(generation, "model_directory", lambda *_: Path())
    monkeypatch.setattr(generation, "trained_job", lambda _: SimpleNamespace(id="j"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append(warm.is_alive() is not None))
    request = ComparisonRequest(prompt="كلمة").model_dump()
    with pytest.raises(SpecInvalid, match="it is refused"):
        generation._answer(desk_for(request, gpu_sharing="training_first"))
    assert held == [False]


def test_a_request_without_a_length_is_answered_with_what_fits(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    warm = SimpleNamespace(get=lambda *_: ("ipo", pair), forget=lambda _: None)
    monkeypatch.setattr(generation, "_warm_pairs", lambda _: warm)
    monkeypatch.setattr(generation, "model_directory", lambda *_: Path())
    monkeypatch.setattr(generation, "trained_job", lambda _: SimpleNamespace(id="j"))

    def answered(**sent: Any) -> dict[str, Any]:
        return generation._answer(desk_for(ComparisonRequest(prompt="كلمة " * 470, **sent).model_dump()))

    assert answered()["prompt"] == "كلمة " * 470
    assert answered(max_length=4)["trained_model_response"]
    with pytest.raises(DataInvalid, match="max_length asks for 256 more"):
        answered(max_length=256)
