"""The fast path gives the losses and gradients of TRL's own, whatever the rows look like, and says when it was not taken."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from tests.conftest import TINY_MODEL
from tests.fakes import RecordingObserver
from tests.training import (
    ON_LABELS,
    ON_PAIRS,
    config,
    crossed,
    first_of_each_trainer,
    make_model,
    on_labels,
    small_model,
    some_rows,
    soon,
    write_rows,
)
from trainer_core import PreferenceTrainer
from trainer_core.acceleration import Behind, Savings, accelerate, is_accelerated, refusal, release
from trainer_core.acceleration.head import score_tokens
from trainer_core.acceleration.packing import pack
from trainer_core.errors import NonfiniteLoss
from trainer_core.methods.cpo_trainer import CPOTrainer

SHAPE: dict[str, Any] = {
    "vocab_size": 301,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_implementation": "sdpa",
}
MODELS = {
    "qwen2": lambda **more: Qwen2ForCausalLM(Qwen2Config(**SHAPE, **more)),
    "qwen3": lambda **more: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8, **more)),
}
METRICS = ("log_probs", "entropy", "mean_logits", "is_top1")


def model_of(kind: str, lora: bool, tied: bool) -> Any:
    model = MODELS[kind](tie_word_embeddings=tied)
    if not lora:
        return model
    policy = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return policy


def random_pairs(side: str, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Chosen rows, then rejected ones: padded ids, attention mask, labels. Among them every kind of common beginning."""

    def tokens(low: int, high: int) -> Tensor:
        return torch.randint(1, 300, (int(torch.randint(low, high, (), generator=draw)),), generator=draw)

    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for kind in ("usual", "usual", "no common prefix", "all prefix", "one inside the other", "alike at first"):
        prompt, chosen, rejected = tokens(1, 12), tokens(1, 12), tokens(1, 12)
        if kind == "all prefix":
            rejected = chosen
        if kind == "one inside the other":
            rejected = torch.cat([chosen, rejected])
        if kind == "alike at first":
            chosen, rejected = torch.cat([prompt[:3], chosen]), torch.cat([prompt[:3], rejected])
        if kind == "no common prefix":
            prompt, chosen = prompt[:1], torch.cat([prompt, chosen])
        pairs.append((prompt, chosen, rejected))
    rows = [(prompt, answers[which]) for which in (0, 1) for prompt, *answers in pairs]
    if "no common prefix":
        rows[2 + len(pairs)] = (rows[2 + len(pairs)][0] % 299 + 1, rows[2 + len(pairs)][1])
    width = max(len(prompt) + len(answer) for prompt, answer in rows) + 2
    ids = torch.randint(1, 300, (len(rows), width), generator=draw)  # what padding holds must not matter
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        place = slice(0, length) if side == "right" else slice(width - length, width)
        ids[i, place], mask[i, place] = torch.cat([prompt, answer]), 1
        labels[i, place] = torch.cat([torch.full_like(prompt, -100), answer])
    return ids, mask, labels


def answered(model: Any, batch: tuple[Tensor, Tensor, Tensor], **more: Any) -> tuple[Any, dict[str, Tensor]]:
    """What the model answers to TRL's call, and the gradients of a sum that weighs each row otherwise."""
    ids, mask, labels = batch
    model.zero_grad()
    outputs = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True, **more)
    weights = torch.linspace(-1, 2, len(ids))
    (outputs.log_probs.sum(dim=1) * weights).sum().backward()
    return outputs, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("lora", "tied"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", MODELS)
def test_log_probabilities_and_gradients_are_those_of_the_plain_path(
    kind: str, side: str, lora: bool, tied: bool, checkpointing: bool
) -> None:
    torch.manual_seed(3)
    draw = torch.Generator().manual_seed(4)
    plain = model_of(kind, lora, tied)
    fast = copy.deepcopy(plain)
    add_fused_lm_head(plain.get_base_model() if lora else plain, outputs=METRICS)
    savings = Savings()
    accelerate(fast, savings)
    for model in (plain, fast):
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for _ in range(4):
        batch = random_pairs(side, draw)
        # transformers counts positions from the first column: a row padded on the left begins later there.
        positions = (batch[1].cumsum(dim=1) - 1).clamp(min=0)
        expected, gradients = answered(plain, batch, position_ids=positions)
        found, fast_gradients = answered(fast, batch)
        for name in ("log_probs", "entropy", "mean_logits"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(found.is_top1, expected.is_top1)
        assert fast_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (fast_gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name
    assert savings.computed < 0.7 * savings.plain


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_a_second_batch_behind_the_first(kind: str, checkpointing: bool) -> None:
    """KTO's mismatched answers: scored as if alone, and the first batch's result and gradients are what they were."""
    torch.manual_seed(5)
    draw = torch.Generator().manual_seed(6)
    model = model_of(kind, lora=True, tied=True)
    savings = Savings()
    accelerate(model, savings)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids, mask, labels = random_pairs("right", draw)
    first, second = ((ids[half], mask[half], labels[half]) for half in (slice(0, 6), slice(6, 12)))
    alone, gradients = answered(model, first)
    with torch.no_grad():
        apart = model(input_ids=second[0], attention_mask=second[1], labels=second[2], fused_lm_head=True)
    before = savings.computed
    behind = Behind(*second)
    model(input_ids=first[0], attention_mask=first[1], labels=first[2], fused_lm_head=True, behind=behind)
    assert savings.computed - before < int(mask.sum())
    together, found = answered(model, first)
    assert behind.log_probs is not None
    assert not behind.log_probs.requires_grad
    torch.testing.assert_close(behind.log_probs, apart.log_probs, rtol=1e-5, atol=1e-5)
    assert torch.equal(together.log_probs, alone.log_probs)
    assert all(torch.equal(found[name], gradient) for name, gradient in gradients.items())
    count = savings.computed
    answered(model, first)
    assert savings.computed > count, "what was computed ahead is given once"


def test_an_answer_does_not_see_the_other() -> None:
    torch.manual_seed(7)
    model = model_of("qwen2", lora=False, tied=True)
    accelerate(model, Savings())
    ids, mask, labels = random_pairs("right", torch.Generator().manual_seed(8))
    changed = ids.clone()
    changed[6:][labels[6:] != -100] = 17
    # The prompts stay: what the pairs share may only shrink.
    with torch.no_grad():
        before, after = (
            model(input_ids=each, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs[:6]
            for each in (ids, changed)
        )
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)


def test_an_output_layer_that_does_not_allow_it_is_named() -> None:
    model = MODELS["qwen2"](tie_word_embeddings=False)
    assert refusal(model) is None
    adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))
    assert refusal(adapted) == ("the output layer lm_head is a peft.tuners.lora.layer.Linear, not a torch.nn.Linear")
    packed = MODELS["qwen2"](tie_word_embeddings=False)
    packed.lm_head.weight = torch.nn.Parameter(packed.lm_head.weight.to(torch.uint8), requires_grad=False)
    assert refusal(packed) == "the output layer lm_head stores its weights as torch.uint8"


def test_a_model_that_was_fast_can_be_plain_again() -> None:
    model = model_of("qwen2", lora=False, tied=True)
    savings = Savings()
    accelerate(model, savings)
    add_fused_lm_head(model)
    release(model)
    assert not is_accelerated(model)
    ids, mask, labels = random_pairs("left", torch.Generator().manual_seed(11))
    found = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    assert savings.computed == 0
    accelerate(model, savings)
    again = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    assert savings.computed > 0
    wanted = labels[:, 1:] != -100
    torch.testing.assert_close(again.log_probs[wanted], found.log_probs[wanted], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_frozen_output_layer(with_bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against log-softmax and its own gradient, in slices of 16 positions."""
    monkeypatch.setattr("trainer_core.acceleration.head._SLICE_BYTES", {"cpu": 1})
    torch.manual_seed(9)
    head = torch.nn.Linear(24, 211, bias=with_bias).to(dtype).requires_grad_(False)
    hidden = torch.randn(37, 24, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 211, (37,))
    weights = torch.randn(37)
    found = score_tokens(hidden, head, targets, with_metrics=True)
    (gradient,) = torch.autograd.grad((found.log_probs * weights).sum(), hidden)
    logits = head(hidden).float()
    log_p = logits.log_softmax(dim=1)
    expected = log_p.gather(1, targets[:, None])[:, 0]
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), hidden)
    exact = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 3e-2}
    torch.testing.assert_close(found.log_probs, expected.detach(), **exact)
    torch.testing.assert_close(gradient, expected_gradient, **exact)
    assert found.entropy is not None
    assert found.mean_logits is not None
    torch.testing.assert_close(found.entropy, -(log_p.exp() * log_p).sum(dim=1).detach(), **exact)
    torch.testing.assert_close(found.mean_logits, logits.mean(dim=1).detach(), **exact)
    assert torch.equal(found.is_top1, logits.argmax(dim=1) == targets)
    with torch.no_grad():
        without = score_tokens(hidden, head, targets, with_metrics=True)
        bare = score_tokens(hidden, head, targets, with_metrics=False)
    torch.testing.assert_close(without.entropy, found.entropy, **exact)
    assert torch.equal(bare.log_probs, without.log_probs)
    assert bare.entropy is None


def test_the_frozen_output_layer_of_a_model_that_knows_nothing_in_half_precision() -> None:
    """Its exponentials sum to the whole vocabulary, which is more than the type can hold."""
    head = torch.nn.Linear(4, 70_000, bias=False).half().requires_grad_(False)
    head.weight.mul_(1e-3)
    hidden = torch.randn(3, 4, dtype=torch.float16, requires_grad=True)
    found = score_tokens(hidden, head, torch.tensor([1, 2, 3]), with_metrics=True)
    found.log_probs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_padding_alone_and_no_label_at_all() -> None:
    model = model_of("qwen2", lora=True, tied=True)
    accelerate(model, Savings())
    ids, mask, labels = random_pairs("right", torch.Generator().manual_seed(10))
    outputs = model(input_ids=ids, attention_mask=mask, labels=torch.full_like(labels, -100), fused_lm_head=True)
    assert outputs.log_probs.shape == (12, ids.shape[1] - 1)
    outputs.log_probs.sum().backward()
    assert outputs.log_probs.abs().sum() == 0
    mask[3] = 0
    assert pack(ids, mask).tokens > 0


# -- trainings


def trained(method: str, folder: Path, **fields: Any) -> tuple[PreferenceTrainer, RecordingObserver]:
    observer = RecordingObserver()
    trainer = PreferenceTrainer(config(method, folder, **{"model_name": small_model(), **fields}), observer=observer)
    trainer.train()
    return trainer, observer


def losses(observer: RecordingObserver) -> list[float]:
    return [values[name] for _, values in observer.points for name in ("loss", "eval_loss") if name in values]


def check_weights(name: str, ours: torch.Tensor, theirs: torch.Tensor, rates: float) -> None:
    """Equal but for rounding.

    AdamW divides a gradient by its own size, so a gradient that is only rounding still moves its weight by the learning
    rate, in either direction: a few weights may differ by what the rates add up to.
    """
    differs = ~torch.isclose(ours, theirs, rtol=1e-3, atol=2e-5)
    assert differs.sum() <= max(3, differs.numel() // 1000), name
    assert (ours - theirs).abs().max() <= 2 * rates, name


KINDS_OF_RUN: dict[str, dict[str, Any]] = {
    "accumulation": {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 4},
    "checkpointing": {"gradient_checkpointing": True},
    "full": {"use_lora": False, "learning_rate": 1e-5},
    "full and checkpointing": {"use_lora": False, "learning_rate": 1e-5, "gradient_checkpointing": True},
}


@pytest.mark.parametrize(("method", "fields"), crossed(list(KINDS_OF_RUN.values()), list(KINDS_OF_RUN)))
def test_a_training_is_that_of_the_plain_path(method: str, fields: dict[str, Any], tmp_path: Path) -> None:
    validation = write_rows(tmp_path / "validation.jsonl", some_rows(method, 12))
    fields = {**fields, "eval_dataset_path": validation, "sample_generations": 0}
    fast, fast_seen = trained(method, tmp_path / "fast", **fields)
    plain, plain_seen = trained(method, tmp_path / "plain", **fields, acceleration="off")
    assert losses(fast_seen) == pytest.approx(losses(plain_seen), rel=1e-5)
    assert len(losses(fast_seen)) >= 6
    rates = sum(values["learning_rate"] or 0.0 for _, values in plain_seen.points if "learning_rate" in values)
    for (name, ours), (_, theirs) in zip(fast.model.named_parameters(), plain.model.named_parameters(), strict=True):
        check_weights(name, ours, theirs, rates)
    # The metrics beside the loss, too. Mean logits of TRL's CPO trainer are over answers here, and over everything there.
    for (step, ours), (_, theirs) in zip(fast_seen.points, plain_seen.points, strict=True):
        for name in ours.keys() - {name for name in ours if "runtime" in name or "per_second" in name}:
            if theirs[name] is None:
                assert ours[name] is None, (step, name)
            elif not isinstance(fast.trainer, CPOTrainer) or "logits/" not in name:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), (step, name)
    told = json.loads((tmp_path / "fast" / f"{method}_metadata.json").read_text())["acceleration"]
    assert told["path"] == "shared_prompt"
    batches = 4 * fields.get("gradient_accumulation_steps", 1)
    assert told["batches"] == {"shared_prompt": batches, "plain": 0}
    assert told["plain_because"] == {}
    assert 0 < told["tokens_computed"] < 0.8 * told["tokens_plain"]
    told = json.loads((tmp_path / "plain" / f"{method}_metadata.json").read_text())["acceleration"]
    assert told["path"] == "plain"
    assert told["batches"] == {"shared_prompt": 0, "plain": batches}
    assert told["plain_because"]["model"] == "acceleration is off"
    assert told["tokens_computed"] == 0
    assert "plain_path" not in plain_seen.warnings, "who asks for it needs no warning"


@pytest.mark.parametrize("method", [ON_LABELS, ON_PAIRS])
def test_policy_and_reference_round_alike(method: str, tmp_path: Path) -> None:
    """In bfloat16 equal weights give equal log-probabilities only when both sides compute in it."""
    fields = {"use_lora": False, "precision": "bf16", "max_steps": 1, "sample_generations": 0}
    _, fast = trained(method, tmp_path / "fast", **fields)
    _, plain = trained(method, tmp_path / "plain", **fields, acceleration="off")
    for observer in (fast, plain):
        assert observer.points[0][1]["rewards/chosen"] == 0
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-5)


@pytest.mark.parametrize("acceleration", ["auto", "off"])
def test_a_lent_reference_rounds_as_the_policy(acceleration: str, tmp_path: Path) -> None:
    fields = {"use_lora": False, "use_ref_model": False, "precision": "bf16", "max_steps": 1, "learning_rate": 1e-12}
    trainer, _ = trained("kto", tmp_path / "out", **fields, sample_generations=0, acceleration=acceleration)
    for _ in range(2):
        found = trainer.evaluate_model(some_rows("kto", 12))
        assert found["eval_rewards/chosen"] == pytest.approx(0, abs=1e-6)
        assert found["eval_rewards/rejected"] == pytest.approx(0, abs=1e-6)


def make_llama(folder: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    settings = {**SHAPE, "vocab_size": len(tokenizer)}
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("method", soon(first_of_each_trainer()))
def test_a_model_that_does_not_allow_it_takes_the_plain_path_and_says_so_once(method: str, tmp_path: Path) -> None:
    model = make_llama(tmp_path / "llama")
    trainer, observer = trained(method, tmp_path / "out", model_name=model)
    assert "llama" in observer.warnings["plain_path"]
    told = trainer.metadata()["acceleration"]
    assert told["path"] == "plain"
    assert "llama" in told["plain_because"]["model"]


def test_positions_by_length_are_refused() -> None:
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, rope_parameters=longrope | factors))
    assert "longrope" in (refusal(model) or "")


def test_windows_and_random_attention_are_refused() -> None:
    windows = MODELS["qwen2"](use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert "sliding_attention" in str(refusal(windows))
    assert "attention_dropout" in str(refusal(MODELS["qwen3"](attention_dropout=0.1)))
    assert refusal(MODELS["qwen3"]()) is None


@pytest.mark.parametrize("method", soon(first_of_each_trainer()))
def test_broken_weights_are_noticed_on_the_fast_path(method: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    trainer = PreferenceTrainer(config(method, tmp_path / "out", model_name=model))
    trainer.load()
    trainer.prepare()
    parameter = next(p for name, p in trainer.model.named_parameters() if "lora_B" in name)
    trainer.check_reference = lambda: None
    with torch.no_grad():
        parameter.fill_(float("nan"))
    with pytest.raises(NonfiniteLoss, match="in rows"):
        trainer.train()


# -- the reference, once


def epochs(method: str, folder: Path, **fields: Any) -> tuple[PreferenceTrainer, RecordingObserver]:
    rows = write_rows(folder.parent / "rows.jsonl", some_rows(method, 32))
    validation = write_rows(folder.parent / "validation.jsonl", some_rows(method, 44)[32:])
    settings = {"dataset_path": rows, "eval_dataset_path": validation, "sample_generations": 0}
    return trained(method, folder, **settings, max_steps=None, **{"num_train_epochs": 3, **fields})


@pytest.mark.parametrize("use_lora", [True, False])
@pytest.mark.parametrize("method", [ON_LABELS, ON_PAIRS])
def test_the_reference_is_asked_once_when_there_are_epochs(method: str, use_lora: bool, tmp_path: Path) -> None:
    fields = {"use_lora": use_lora, "learning_rate": 1e-3 if use_lora else 1e-5}
    fast, fast_seen = epochs(method, tmp_path / "fast", **fields)
    _, plain_seen = epochs(method, tmp_path / "plain", **fields, acceleration="off")
    assert losses(fast_seen) == pytest.approx(losses(plain_seen), rel=1e-5)
    assert fast.metadata()["acceleration"]["reference_passes"] == "once"
    assert fast.metadata()["acceleration"]["plain_because"] == {}, "nor is the reference asked on the slow path"
    assert "reference" in fast_seen.phases
    assert "reference" not in plain_seen.phases
    # Rows that were not there before the first step have a reference too.
    rows = some_rows(method, 60)[44:]
    found = fast.evaluate_model(rows)
    own = fast.compute_preference_metrics(rows)
    loss = own["kto_loss" if on_labels(method) else "preference_loss"]
    assert found["eval_loss"] == pytest.approx(loss, rel=0.05)


def test_one_epoch_asks_at_every_step(tmp_path: Path) -> None:
    trainer, observer = epochs("ipo", tmp_path / "out", num_train_epochs=1)
    assert trainer.metadata()["acceleration"]["reference_passes"] == "every step"
    assert "reference" not in observer.phases
    cpo, _ = epochs("cpo", tmp_path / "cpo")
    assert cpo.metadata()["acceleration"]["reference_passes"] is None


@pytest.mark.parametrize("method", [ON_LABELS, ON_PAIRS])
def test_trainings_on_the_same_rows_share_what_the_reference_said(method: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    first, first_seen = epochs(method, tmp_path / "first", cache_dir=cache)
    again, again_seen = epochs(method, tmp_path / "again", cache_dir=cache)
    assert first.metadata()["acceleration"]["reference_passes"] == "once"
    assert again.metadata()["acceleration"]["reference_passes"] == "known before"
    assert losses(again_seen) == losses(first_seen)
    # Even where it would be asked once only, and with another learning rate.
    short, _ = epochs(method, tmp_path / "short", cache_dir=cache, num_train_epochs=1, learning_rate=1e-4)
    assert short.metadata()["acceleration"]["reference_passes"] == "known before"
    # Another reference has another place.
    other = make_model(tmp_path / "model", "qwen3")
    elsewhere, _ = epochs(method, tmp_path / "elsewhere", cache_dir=cache, model_name=other)
    assert elsewhere.metadata()["acceleration"]["reference_passes"] == "once"
    # As have the same weights that are read in another way.
    settings = json.loads((Path(other) / "config.json").read_text())
    settings["rope_parameters"]["rope_theta"] *= 2
    (Path(other) / "config.json").write_text(json.dumps(settings))
    turned, _ = epochs(method, tmp_path / "turned", cache_dir=cache, model_name=other)
    assert turned.metadata()["acceleration"]["reference_passes"] == "once"


def test_an_adapter_as_reference_is_known_by_its_settings_too(tmp_path: Path) -> None:
    fields = {"cache_dir": str(tmp_path / "cache"), "num_train_epochs": 2}
    epochs("ipo", tmp_path / "adapter")
    fields["adapter_name"] = str(tmp_path / "adapter")
    first, _ = epochs("ipo", tmp_path / "first", **fields)
    again, _ = epochs("ipo", tmp_path / "again", **fields)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    settings["lora_alpha"] *= 4
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    scaled, _ = epochs("ipo", tmp_path / "scaled", **fields)
    told = [trainer.metadata()["acceleration"]["reference_passes"] for trainer in (first, again, scaled)]
    assert told == ["once", "known before", "once"]


def test_a_damaged_cache_is_not_believed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    _, expected = epochs("ipo", tmp_path / "first", cache_dir=str(cache))
    files = list(cache.iterdir())
    assert len(files) == 4, "tokens and log-probabilities, of the training and of the validation rows"
    for file in files:
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    trainer, found = epochs("ipo", tmp_path / "again", cache_dir=str(cache))
    assert trainer.metadata()["acceleration"]["reference_passes"] == "once"
    assert losses(found) == losses(expected)


def test_a_cache_that_cannot_be_written_stops_no_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    trainer, _ = epochs("ipo", tmp_path / "out", cache_dir=str(tmp_path / "file"))
    assert trainer.metadata()["acceleration"]["reference_passes"] == "once"
