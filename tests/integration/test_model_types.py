"""Every model type is computed as its own forward pass computes it, by the loss and by metrics, or refused by name."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.architectures import SETTINGS, make_model
from tests.conftest import TINY_MODEL
from tests.fakes import RecordingObserver
from tests.training import METHODS, config, some_rows, write_rows
from trainer_core import PreferenceTrainer
from trainer_core.errors import ForwardMismatch, ModelRefused
from trainer_core.forward_check import Batch
from trainer_core.scoring import score

FAST = {"qwen2", "qwen3"}


def prepared(method: str, model_name: str, folder: Path, *, is_changed: bool = True, **fields: Any) -> PreferenceTrainer:
    """A trainer whose adapter changes what the model answers, or whose adapter is new."""
    rows = write_rows(folder / "rows.jsonl", some_rows(method, 8))
    settings = config(
        method,
        folder / "out",
        model_name=model_name,
        dataset_path=rows,
        eval_dataset_path=rows,
        max_length=128,
        max_prompt_length=64,
        sample_generations=0,
        eval_on_start=False,
        **fields,
    )
    trainer = PreferenceTrainer(settings, observer=RecordingObserver())
    trainer.load()
    torch.manual_seed(3)
    for name, parameter in trainer.model.named_parameters():
        if is_changed and "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    trainer.prepare()
    return trainer


def plain_logps(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    log_p = logits.float().log_softmax(dim=-1)[len(prompt) - 1 : -1]
    return log_p.gather(1, torch.tensor(answer)[:, None]).sum()


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_metrics_are_those_of_a_plain_pass(name: str, tmp_path: Path) -> None:
    # peft adapts no layers of Mamba's.
    targets: dict[str, Any] = {"lora_target_modules": ["q_proj", "v_proj"]} if name == "falcon_h1" else {}
    trainer = prepared("ipo", make_model(tmp_path / "model", name), tmp_path, **targets)
    model = trainer.model.eval()
    rows = trainer.data_loader.train[:3]
    answers = {kind: [row[f"{kind}_ids"] for row in rows] for kind in ("chosen", "rejected")}
    scores = score(model, None, [row["prompt_ids"] for row in rows], answers)
    for i, row in enumerate(rows):
        own = [row["chosen_ids"], row["rejected_ids"]]
        with torch.no_grad():
            plain = torch.stack([plain_logps(model, row["prompt_ids"], answer) for answer in own])
            loss = trainer.trainer.answer_log_probs(model, Batch.of(row["prompt_ids"], own, torch.device("cpu")))
        metrics = torch.stack([scores[kind].logps[i] for kind in answers]).float()
        torch.testing.assert_close(metrics, plain, rtol=0, atol=1e-4)
        torch.testing.assert_close(loss.sum(dim=1), plain, rtol=0, atol=1e-4)
    found = trainer.evaluate_model()
    # For a mixture of experts TRL's loss has a part that balances them.
    balance = found.get("eval_aux_loss", 0.0) * trainer.trainer.router_aux_loss_coef
    assert found["eval_loss"] - balance == pytest.approx(found["eval_preference_loss"], rel=1e-4)
    assert found["eval_loss"] != pytest.approx(25.0, rel=1e-3), "the adapter must have an effect"
    assert ("model" not in trainer.metadata()["acceleration"]["plain_because"]) == (name in FAST)


def test_every_text_model_of_qwen_is_tested() -> None:
    def is_text(kind: str) -> bool:
        made = CONFIG_MAPPING[kind]()
        return made.get_text_config() is made

    qwen = {kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind.startswith("qwen")}
    assert {kind for kind in qwen if is_text(kind)} <= set(SETTINGS), "give each new type its settings"


def test_the_table_of_types_in_the_docs_is_what_is_tested() -> None:
    text = (Path(__file__).parents[2] / "docs" / "trainer_core.md").read_text(encoding="utf-8")
    table = text.split("<!-- models:")[1].split("\n\n")[0].splitlines()[3:]
    paths = {kind: row.split("|")[2].strip(" `") for row in table for kind in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert paths == {name.split()[0]: "shared_prompt" if name in FAST else "plain" for name in SETTINGS}


# -- refusals


@pytest.fixture
def granite(tmp_path: Path) -> str:
    return make_model(tmp_path / "model", "granite")


def test_metrics_that_leave_out_what_follows_the_output_layer_are_refused(
    granite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer_core.scoring.own_logits", lambda model, states: model.get_output_embeddings()(states))
    with pytest.raises(
        ForwardMismatch, match=r"computed for the metrics differ .*\(GraniteForCausalLM\) by .* nats per token in row \d"
    ):
        prepared("ipo", granite, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_a_fast_path_that_is_wrong_is_refused(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer_core.acceleration import forward

    right = forward.score_tokens

    def wrong(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return right(hidden * 1.01, *args, **kwargs)

    monkeypatch.setattr(forward, "score_tokens", wrong)
    with pytest.raises(ForwardMismatch, match="computed for the loss differ"):
        prepared(method, str(TINY_MODEL), tmp_path)
    prepared(method, str(TINY_MODEL), tmp_path, acceleration="off")


def test_mismatched_answers_are_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer_core.acceleration import forward

    right: Callable[..., Any] = forward.pack_behind

    def wrong(*args: Any) -> Any:
        packed = right(*args)
        packed.positions += 1
        return packed

    monkeypatch.setattr(forward, "pack_behind", wrong)
    with pytest.raises(ForwardMismatch, match="computed for the loss differ"):
        prepared("kto", str(TINY_MODEL), tmp_path)


def test_a_reference_of_its_own_is_checked_too(granite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer_core import scoring

    right = scoring.own_logits

    def wrong(model: Any, states: torch.Tensor) -> torch.Tensor:
        scale = 1.0 if "Qwen2" in repr(type(model)) or hasattr(model, "peft_config") else 0.25
        return right(model, states) * scale

    monkeypatch.setattr(scoring, "own_logits", wrong)
    with pytest.raises(ForwardMismatch, match=r"the reference \(GraniteForCausalLM\)"):
        prepared("ipo", str(TINY_MODEL), tmp_path, ref_model_name=granite)


def test_a_model_that_cannot_be_computed_is_refused_by_name(
    granite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> Any:
        raise AttributeError("'Granite' object has no attribute 'model'")

    monkeypatch.setattr("trainer_core.scoring.layers_of", fails)
    with pytest.raises(ModelRefused, match="the model cannot be used: models of type GraniteForCausalLM fail with “Attr"):
        prepared("ipo", granite, tmp_path)


def test_weights_that_are_not_finite_are_named_by_the_check_of_weights(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = AutoModelForCausalLM.from_pretrained(make_model(folder, "qwen2"))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(folder)
    trainer = prepared("ipo", str(folder), tmp_path, is_changed=False, max_steps=1)
    with pytest.raises(ModelRefused, match=r"NaN or infinity in model.layers.0.mlp.up_proj.weight"):
        trainer.train()


def test_the_check_leaves_no_trace(tmp_path: Path) -> None:
    trainer = prepared("cpo", str(TINY_MODEL), tmp_path)
    assert trainer.model.training
    assert trainer.tokens_computed == 0
    assert trainer.metadata()["acceleration"]["batches"] == {"shared_prompt": 0, "plain": 0}


# -- the start of a text


@pytest.fixture
def with_start(tmp_path: Path) -> str:
    """A Llama base model: its tokenizer puts `<s>` before each text, and has no chat template."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "llama"
    make_model(folder, "llama")
    shipped = AutoTokenizer.from_pretrained(TINY_MODEL)
    # Any token does that text does not hold.
    start = shipped.convert_tokens_to_ids("<|im_start|>")
    shipped.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    made = PreTrainedTokenizerFast(
        tokenizer_object=shipped.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    made.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "bos_token_id": start}))
    return str(folder)


def test_a_base_model_gets_the_start_of_a_text_in_training_and_comparisons(with_start: str, tmp_path: Path) -> None:
    from trl import DPOTrainer

    from trainer_core.comparison import load_pair

    trainer = prepared("ipo", with_start, tmp_path, is_changed=False, max_steps=1)
    trainer.train()
    tokenizer = trainer.tokenizer
    start = tokenizer.bos_token_id
    row = trainer.data_loader.train[0]
    text = row["prompt"]
    assert row["prompt_ids"][:1] == [start]
    assert row["prompt_ids"] == tokenizer(text)["input_ids"]
    assert start not in row["chosen_ids"]
    # TRL's own preparation of the same row begins alike.
    from datasets import Dataset

    arguments = trainer.trainer.args
    raw = Dataset.from_list([{name: row[name] for name in ("prompt", "chosen", "rejected")}])
    theirs: Any = DPOTrainer._prepare_dataset(trainer.trainer, raw, tokenizer, arguments, "train")
    theirs = theirs[0]
    shared = min(len(theirs["prompt_ids"]), len(row["prompt_ids"]) - 1)
    assert theirs["prompt_ids"][:shared] == row["prompt_ids"][:shared]
    _, pair = load_pair(tmp_path / "out", lambda name: name)
    assert pair.renderer.prompt_ids(text) == row["prompt_ids"]
    assert trainer.metadata()["start_tokens"] == [start]


def test_a_model_of_an_earlier_version_is_compared_without_the_start_it_never_saw(with_start: str, tmp_path: Path) -> None:
    from trainer_core.comparison import load_pair

    trainer = prepared("ipo", with_start, tmp_path, is_changed=False, max_steps=1)
    trainer.train()
    path = tmp_path / "out" / "ipo_metadata.json"
    metadata = json.loads(path.read_text(encoding="utf-8"))
    del metadata["start_tokens"]
    path.write_text(json.dumps(metadata), encoding="utf-8")
    _, pair = load_pair(tmp_path / "out", lambda name: name)
    prompt = trainer.data_loader.train[0]
    assert pair.renderer.prompt_ids(prompt["prompt"]) == prompt["prompt_ids"][1:]
