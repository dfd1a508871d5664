"""A comparison proves which weights answered: an adapter that is swapped, left on, off or merged is noticed."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.fakes import RecordingObserver
from tests.training import PROMPT, config, make_model, some_rows
from trainer_core import PreferenceTrainer, comparison, held_out
from trainer_core.comparison import ModelPair, load_pair
from trainer_core.errors import DataInvalid, ReferenceMismatch, SpecInvalid
from trainer_core.fingerprints import adapter_tensors, base_tensors, fingerprint
from trainer_core.models import load_model, load_tokenizer
from trainer_core.reference import FrozenView
from trainer_core.small_batches import SmallBatches
from trainer_core.tokens import Renderer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trainings on one model: `first` and `second`."""
    folder = tmp_path_factory.mktemp("comparison")
    make_model(folder / "model")
    for seed, name in enumerate(("first", "second")):
        fields = {"model_name": str(folder / "model"), "learning_rate": 0.05, "seed": seed}
        PreferenceTrainer(config("ipo", folder / name, **fields), observer=RecordingObserver()).train()
    return folder


@pytest.fixture
def pair(trained: Path) -> ModelPair:
    return load_pair(trained / "first", lambda name: name)[1]


def test_each_side_is_answered_by_its_own_weights(pair: ModelPair, trained: Path) -> None:
    """Against models loaded apart: the base alone, and the base with the adapter merged into it."""
    found = pair.compare(PROMPT, max_new_tokens=12)
    assert found.trained_response != found.reference_response
    renderer = Renderer(load_tokenizer(str(trained / "model")))
    base = load_model(str(trained / "model"), torch.float32).eval()
    alone: Any = load_model(str(trained / "model"), torch.float32)
    merged = PeftModel.from_pretrained(alone, str(trained / "first")).merge_and_unload().eval()
    apart = ModelPair(merged, base, renderer, pair.beta, reward=pair.reward).compare(PROMPT, max_new_tokens=12)
    assert apart.trained_response == found.trained_response
    assert apart.reference_response == found.reference_response
    assert apart.preference_score == pytest.approx(found.preference_score, rel=1e-3)
    assert apart.proof.max_logit_difference == pytest.approx(found.proof.max_logit_difference, rel=1e-3)
    assert apart.proof.mean_kl == pytest.approx(found.proof.mean_kl, rel=1e-2)
    files = load_file(trained / "model" / "model.safetensors")
    assert found.proof.reference_fingerprint == apart.proof.reference_fingerprint == fingerprint(files.items())


def test_the_numbers_of_the_proof(pair: ModelPair) -> None:
    """By the formulas, from two plain forward passes."""
    found = pair.compare(PROMPT, max_new_tokens=4).proof
    ids = torch.tensor([pair.renderer.prompt_ids(PROMPT)])
    with torch.no_grad():
        trained = pair.policy(input_ids=ids).logits[0]
        with pair.policy.disable_adapter():
            reference = pair.policy(input_ids=ids).logits[0]
    p, q = trained.double().softmax(-1), reference.double().softmax(-1)
    assert found.max_logit_difference == pytest.approx((trained - reference).abs().max().item())
    assert found.mean_kl == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-4)
    assert found.adapter_has_no_effect is False


@pytest.mark.parametrize("apart", [False, True])
def test_texts_are_told_while_they_grow(
    apart: bool, pair: ModelPair, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer_core.streaming._TELL_EVERY_S", 0.0)
    if apart:
        pair.reference = load_model(str(trained / "model"), torch.float32).eval()
    silent = pair.compare(PROMPT, max_new_tokens=12)
    told: list[tuple[str, str]] = []
    found = pair.compare(PROMPT, max_new_tokens=12, tell=lambda *texts: told.append(texts))
    assert found == silent
    assert len(told) == (24 if apart else 12)
    for side, whole in enumerate((found.trained_response, found.reference_response)):
        texts = [each[side] for each in told]
        assert all(whole.startswith(text.strip()) for text in texts)
        assert texts == sorted(texts, key=len), "a text only grows"
        # A letter whose bytes have not all come is shown at the end only.
        assert texts[-1].rstrip("\ufffd").strip() == whole.rstrip("\ufffd").strip()


def test_an_adapter_without_effect_is_told(pair: ModelPair) -> None:
    pair = ModelPair(pair.policy, pair.reference, pair.renderer, pair.beta, reward=pair.reward)
    with torch.no_grad():
        for name, tensor in adapter_tensors(pair.policy, "default"):
            if "lora_B" in name:
                tensor.zero_()
    found = pair.compare(PROMPT, max_new_tokens=8)
    assert found.proof.adapter_has_no_effect is True
    assert found.proof.max_logit_difference == 0
    assert found.trained_response == found.reference_response
    assert found.preference_score == 0.5


def test_a_swapped_adapter_is_noticed(pair: ModelPair, trained: Path) -> None:
    other = load_file(trained / "second" / "adapter_model.safetensors")
    with torch.no_grad():
        for name, tensor in adapter_tensors(pair.policy, "default"):
            tensor.copy_(other[name])
    with pytest.raises(ReferenceMismatch, match="the weights of the trained model have changed since its training ended"):
        pair.compare(PROMPT, max_new_tokens=4)


def test_an_adapter_file_that_was_swapped_is_noticed(trained: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(trained / "first", tmp_path / "mixed")
    shutil.copy(trained / "second" / "adapter_model.safetensors", tmp_path / "mixed")
    mixed = load_pair(tmp_path / "mixed", lambda name: name)[1]
    with pytest.raises(ReferenceMismatch, match="the weights of the trained model"):
        mixed.compare(PROMPT, max_new_tokens=4)


def test_another_base_under_the_same_name_is_noticed(trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    make_model(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert weights
    base = load_model(str(tmp_path / "model"), torch.float32)
    with torch.no_grad():
        next(base.parameters()).mul_(1.01)
    base.save_pretrained(tmp_path / "model")
    moved = load_pair(trained / "first", lambda _: str(tmp_path / "model"))[1]
    with pytest.raises(ReferenceMismatch, match="have changed since its training ended"):
        moved.compare(PROMPT, max_new_tokens=4)


def test_an_adapter_left_on_is_noticed(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference side would be answered by the trained model: the bug that users of other tools met."""
    monkeypatch.setattr(FrozenView, "active", lambda _: nullcontext())
    with pytest.raises(ReferenceMismatch, match=r"the reference would answer with the adapters \[default\] switched on"):
        pair.compare(PROMPT, max_new_tokens=4)


def test_an_adapter_merged_into_the_base_is_noticed(pair: ModelPair) -> None:
    pair.policy.merge_adapter()
    with pytest.raises(ReferenceMismatch, match="merged into the base"):
        pair.compare(PROMPT, max_new_tokens=4)


@pytest.fixture
def one_sided(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> ModelPair:
    """Both rows of a batch are generated with the adapter on, whatever the batch asks for."""
    whole = pair.policy.generate

    def generate(*args: Any, adapter_names: Any = None, **options: Any) -> Any:
        return whole(*args, **options)

    monkeypatch.setattr(pair.policy, "generate", generate)
    return pair


def test_a_batch_that_ignores_its_sides_is_noticed(one_sided: ModelPair) -> None:
    with pytest.raises(ReferenceMismatch, match="the answer from the reference did not come from its weights"):
        one_sided.compare(PROMPT, max_new_tokens=4)


def test_a_trained_side_with_its_adapter_off_is_noticed(pair: ModelPair) -> None:
    """Layers that someone disabled and forgot: both sides would be the base, and look as if training did nothing."""
    pair.policy.base_model.disable_adapter_layers()
    with pytest.raises(ReferenceMismatch, match="trained"):
        pair.compare(PROMPT, max_new_tokens=4)


def test_fingerprints_are_of_live_tensors(trained: Path) -> None:
    loaded = load_pair(trained / "first", lambda name: name)[1]
    pair = ModelPair(loaded.policy, loaded.reference, loaded.renderer, loaded.beta, reward=loaded.reward)
    before = pair.compare(PROMPT, max_new_tokens=4).proof
    with torch.no_grad():
        next(tensor for name, tensor in adapter_tensors(pair.policy, "default") if "lora_B" in name).add_(1e-6)
    after = pair.compare(PROMPT, max_new_tokens=4).proof
    assert after.trained_fingerprint != before.trained_fingerprint
    assert after.function_sha256 != before.function_sha256
    assert after.reference_fingerprint == before.reference_fingerprint
    with torch.no_grad():
        next(tensor for _, tensor in base_tensors(pair.policy)).add_(1e-6)
    last = pair.compare(PROMPT, max_new_tokens=4).proof
    assert last.trained_fingerprint != after.trained_fingerprint
    assert last.reference_fingerprint != after.reference_fingerprint


def test_prompts_that_cannot_be_answered(pair: ModelPair) -> None:
    with pytest.raises(DataInvalid, match="the model accepts at most 512"):
        pair.compare("كلمة " * 600, max_new_tokens=4)
    with pytest.raises(DataInvalid, match="max_length asks for 510 more"):
        pair.compare(PROMPT, max_new_tokens=510)
    raw = ModelPair(pair.policy, pair.reference, Renderer(pair.renderer.tokenizer, apply_chat_template=False), 0.1)
    with pytest.raises(DataInvalid, match="the prompt is empty"):
        raw.compare("", max_new_tokens=4)


def test_a_generation_that_fails_leaves_the_models_usable(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pair.compare(PROMPT, max_new_tokens=4).trained_response
    whole = pair.policy.get_base_model().forward

    def out_of_memory(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(pair.policy.get_base_model(), "forward", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        pair.compare(PROMPT, max_new_tokens=4)
    monkeypatch.setattr(pair.policy.get_base_model(), "forward", whole)
    assert pair.compare(PROMPT, max_new_tokens=4).trained_response == expected
    with pytest.raises(SpecInvalid, match="cannot generate with these options"):
        pair.compare(PROMPT, max_new_tokens=4, colour="red")
    assert pair.compare(PROMPT, max_new_tokens=4).trained_response == expected


def test_options_of_generation(pair: ModelPair) -> None:
    beams = pair.compare(PROMPT, max_new_tokens=6, num_beams=3)
    assert beams.trained_response != beams.reference_response
    sampled = pair.compare(PROMPT, max_new_tokens=6, do_sample=True)
    assert sampled.seed is not None
    again = pair.compare(PROMPT, max_new_tokens=6, do_sample=True, seed=sampled.seed)
    assert again.trained_response == sampled.trained_response
    for options in ({"num_return_sequences": 2}, {"adapter_names": ["default"]}):
        with pytest.raises(SpecInvalid, match=f"{next(iter(options))} is not an option of a comparison"):
            pair.compare(PROMPT, max_new_tokens=4, **options)  # type: ignore[arg-type]
    with pytest.raises(SpecInvalid, match="at least 1"):
        pair.compare(PROMPT, max_new_tokens=0)


def test_the_margin_has_a_sign_and_a_broken_answer_is_flagged(pair: ModelPair) -> None:
    found = pair.compare(PROMPT, max_new_tokens=12)
    assert found.preference_score == pytest.approx(1 / (1 + math.exp(-found.margin)))
    reply = found.responses()
    assert (reply["margin"], reply["flags"]) == (found.margin, list(found.flags))
    # The same answer on both sides differs from nothing, so nothing is flagged.
    swapped = ModelPair(pair.policy, FrozenView(pair.policy, pair.adapter), pair.renderer, pair.beta, reward=pair.reward)
    answers = comparison._Answers([5] * 40, [5, 6, 7, 8], torch.zeros(1), torch.zeros(1))
    assert "repetition" in swapped._flags(PROMPT, ("نعم " * 20, "هي مدينة الرباط"), answers, ())
    assert "length_ratio" in swapped._flags(PROMPT, ("نعم " * 20, "هي مدينة الرباط"), answers, ())
    long = ["هذه إجابة طويلة جدًا وفيها كلام كثير عن المدن والبلدان وعن كل ما يخطر في البال من أخبارها"]
    assert "length_ratio" not in swapped._flags(PROMPT, ("نعم " * 20, "هي مدينة الرباط"), answers, long)
    same = comparison._Answers([5, 6, 7, 8], [5, 6, 7, 8], torch.zeros(1), torch.zeros(1))
    assert swapped._flags(PROMPT, ("Rabat", "الرباط"), same, ()) == ["foreign_script"]
    assert swapped._flags(PROMPT, ("Rabat", "الرباط"), same, ["Rabat"]) == []
    assert swapped._flags(PROMPT, ("الرباط", "الرباط"), same, ()) == []


def test_held_out_prompts_are_counted_with_the_real_models(pair: ModelPair) -> None:
    prompts = held_out.prompts_of([{"row": row, **each} for row, each in enumerate(some_rows("ipo", 40)[32:], start=33)])[:3]
    seen = list(held_out.answer(prompts, lambda each: pair.compare(each.prompt, max_new_tokens=6, wanted=each.wanted)))
    result = seen[-1]
    assert (len(seen), result["asked"], result["prompts"]) == (3, 3, 3)
    assert sum(result[name] for name in ("better", "ties", "worse", "broken")) == 3
    for each, asked in zip(result["answers"], prompts, strict=True):
        alone = pair.compare(asked.prompt, max_new_tokens=6, wanted=asked.wanted)
        assert each["row"] == asked.row
        assert (each["trained_model_response"], each["margin"]) == (alone.trained_response, alone.margin)


def test_texts_are_compared_in_composed_form() -> None:
    answers = {"trained_response": "مدر\u0651\u064eس", "reference_response": "مدر\u064e\u0651س"}
    made = comparison.Comparison("س", **answers, preference_score=0.6, seed=None, proof=None)  # type: ignore[arg-type]
    assert made.texts_differ is False


@pytest.mark.parametrize("shape", [(2, 1, 24), (8, 24), (1, 3, 24), (1, 24), (9, 24), (24,)])
def test_linear_layers_over_a_few_rows_compute_the_same(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    rows = torch.randn(*shape)
    for layer in (torch.nn.Linear(24, 50), torch.nn.Linear(24, 50, bias=False), torch.nn.Linear(24, 50).double()):
        one = rows.to(layer.weight.dtype)
        with torch.no_grad(), SmallBatches():
            found = layer(one)
        torch.testing.assert_close(found, layer(one).detach())
