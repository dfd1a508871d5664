"""Rendering, prefixes, and what the length limits do. Uses the shipped tokenizer."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from tests.conftest import TINY_MODEL
from trainer_core.config import IPOConfig
from trainer_core.errors import DataInvalid, DataOverlong
from trainer_core.file_cache import FileCache
from trainer_core.row_encoding import encode_rows
from trainer_core.tokens import Renderer

ROW = {"prompt": "ما عاصمة مصر؟", "chosen": "عاصمة مصر هي القاهرة.", "rejected": "القاهرة."}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY_MODEL)


def config(**fields: Any) -> IPOConfig:
    return IPOConfig(model_name="m", dataset_path="d", **fields)


def test_a_prompt_becomes_a_user_turn_and_an_answer_ends_with_the_end_token(tokenizer: Any) -> None:
    encoded = Renderer(tokenizer).encode(ROW["prompt"], [ROW["chosen"]])
    text = f"<|im_start|>user\n{ROW['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encoded.prompt_ids) == text
    assert tokenizer.decode(encoded.answers_ids[0]) == f"{ROW['chosen']}<|im_end|>"


def test_messages_render_as_the_same_turns(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer)
    as_text = renderer.encode(ROW["prompt"], [ROW["chosen"]])
    as_messages = renderer.encode(
        [{"role": "user", "content": ROW["prompt"]}], [[{"role": "assistant", "content": ROW["chosen"]}]]
    )
    assert as_text == as_messages


def test_without_a_template_the_texts_are_joined(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, apply_chat_template=False)
    encoded = renderer.encode("سؤال", ["جواب"])
    assert tokenizer.decode(encoded.prompt_ids + encoded.answers_ids[0]) == "سؤالجواب<|im_end|>"
    assert renderer.fingerprint != Renderer(tokenizer).fingerprint


@pytest.fixture
def with_start() -> Any:
    """A tokenizer that puts a token before each text, as those of Llama and Gemma do."""
    made = AutoTokenizer.from_pretrained(TINY_MODEL)
    start = made.convert_tokens_to_ids("<|im_start|>")
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    assert made("سؤال")["input_ids"][0] == start
    return made


def test_without_a_template_a_prompt_begins_as_the_tokenizer_begins_a_text(with_start: Any) -> None:
    renderer = Renderer(with_start, apply_chat_template=False)
    prompts = [ROW["prompt"], "<|im_end|>"]
    for prompt in prompts:
        encoded = renderer.encode(prompt, [ROW["chosen"]])
        assert encoded.prompt_ids == renderer.prompt_ids(prompt)
        assert [encoded.prompt_ids[0], encoded.prompt_ids.count(1)] == [1, 1]
        assert 1 not in encoded.answers_ids[0]
    assert renderer.prompt_ids(ROW["prompt"]) == with_start(ROW["prompt"])["input_ids"]
    assert renderer.prompt_ids("") == []
    assert renderer.fingerprint != Renderer(with_start, False, adds_start=False).fingerprint
    assert Renderer(with_start, False, adds_start=False).prompt_ids("س")[0] != 1
    # A template writes the start itself.
    assert Renderer(with_start).encode(*(ROW["prompt"], [])) == Renderer(AutoTokenizer.from_pretrained(TINY_MODEL)).encode(
        ROW["prompt"], []
    )


def test_text_that_was_rendered_before_gets_no_second_start(with_start: Any) -> None:
    renderer = Renderer(with_start, apply_chat_template=False, special_tokens_in_text="allow")
    assert renderer.prompt_ids("<|im_start|>سؤال") == renderer.prompt_ids("سؤال")


def test_a_cut_keeps_the_start_of_a_text(with_start: Any) -> None:
    long = {**ROW, "prompt": "ما عاصمة مصر؟ " * 20}
    renderer = Renderer(with_start, apply_chat_template=False)
    (row,), report = encode_rows([long], renderer, config(max_prompt_length=16, max_length=64))
    whole = renderer.prompt_ids(long["prompt"])
    assert row["prompt_ids"] == [1, *whole[-15:]]
    assert report.prompts_cut == 1
    rows, report = encode_rows([long], renderer, config(max_prompt_length=1, max_length=64))
    assert rows == []
    assert report.findings.rows == {"prompt_lost": [1]}


def test_truncation_keeps_the_end_token_and_is_reported(tokenizer: Any) -> None:
    long = {**ROW, "prompt": "ما عاصمة مصر؟ " * 20, "chosen": "عاصمة مصر هي القاهرة. " * 20}
    rows, report = encode_rows([ROW, long], Renderer(tokenizer), config(max_prompt_length=32, max_length=48))
    assert (report.rows, report.prompts_cut) == (2, 1)
    assert report.completions_cut >= 1
    for row in rows:
        for name in ("chosen_ids", "rejected_ids"):
            assert row[name][-1] == tokenizer.eos_token_id
            assert len(row["prompt_ids"]) + len(row[name]) <= 48
    # The start of the prompt is cut, so the assistant's turn still opens before the answer.
    assert tokenizer.decode(rows[1]["prompt_ids"]).endswith("<|im_start|>assistant\n")


def test_overlong_rows_can_be_dropped_or_rejected(tokenizer: Any) -> None:
    long = {**ROW, "chosen": ROW["chosen"] * 50}
    limits = {"max_prompt_length": 32, "max_length": 64}
    rows, report = encode_rows([long, ROW], Renderer(tokenizer), config(on_overlong="drop", **limits))
    assert ([row["row"] for row in rows], report.rows_dropped) == ([2], [1])
    with pytest.raises(DataOverlong, match="row 1"):
        encode_rows([long, ROW], Renderer(tokenizer), config(on_overlong="reject", **limits))
    assert encode_rows([long], Renderer(tokenizer), config(on_overlong="drop", **limits))[0] == []


def test_text_survives_with_diacritics_and_direction_marks(tokenizer: Any) -> None:
    text = "السَّلامُ عليكم \u200fـــ 123 ١٢٣"
    encoded = Renderer(tokenizer).encode("س", [text])
    assert tokenizer.decode(encoded.answers_ids[0], skip_special_tokens=True) == text


def test_tokenised_rows_are_kept_for_trainings_with_other_limits(tokenizer: Any, tmp_path: Path) -> None:
    class Counting:
        """The tokenizer, and how many texts it was given."""

        texts = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, texts: list[str], **options: Any) -> Any:
            Counting.texts += len(texts) if isinstance(texts, list) else 0
            return tokenizer(texts, **options)

    cache = FileCache(tmp_path, 10**6)
    labelled = {"prompt": "سؤال", "completion": "جواب طويل بعض الشيء.", "label": True}
    for rows in ([ROW, {**ROW, "chosen": "لا."}], [labelled]):
        expected = encode_rows(rows, Renderer(tokenizer), config())
        assert encode_rows(rows, Renderer(Counting()), config(), cache) == expected
        before = Counting.texts
        assert encode_rows(rows, Renderer(Counting()), config(), cache) == expected
        # What is beside the texts may change, and so may the limits.
        other = [{**row, "confidence": 0.5} for row in rows]
        found, report = encode_rows(other, Renderer(Counting()), config(max_prompt_length=3, max_length=8), cache)
        assert report.prompts_cut == len(rows)
        assert all(row["confidence"] == 0.5 for row in found)
        assert Counting.texts == before
        # Another text, another template.
        encode_rows([{**rows[0], "prompt": "سؤال آخر"}, *rows[1:]], Renderer(Counting()), config(), cache)
        assert Counting.texts > before
        before = Counting.texts
        assert encode_rows(rows, Renderer(Counting(), apply_chat_template=False), config(), cache) != expected
        assert Counting.texts > before


def test_rows_that_cannot_be_rendered_are_all_named_and_nothing_is_kept(tokenizer: Any, tmp_path: Path) -> None:
    broken = {**ROW, "chosen": "\ud800"}
    rows = [ROW] * 1500
    rows[3] = rows[1200] = broken
    with pytest.raises(DataInvalid, match=r"2 rows cannot be rendered \(the first is row 4\): the text contains") as error:
        encode_rows(rows, Renderer(tokenizer), config(), FileCache(tmp_path, 10**6))
    assert [detail.line for detail in error.value.details] == [4, 1201]
    assert list(tmp_path.iterdir()) == []


def test_a_template_that_asks_for_the_date_is_rendered_each_time(tokenizer: Any, tmp_path: Path) -> None:
    dated = AutoTokenizer.from_pretrained(TINY_MODEL)
    dated.chat_template = "{% set day = strftime_now('%d') %}" + tokenizer.chat_template
    encode_rows([ROW], Renderer(dated), config(), FileCache(tmp_path, 10**6))
    assert list(tmp_path.iterdir()) == []


def test_ids_are_not_those_of_a_tokenizer_that_splits_special_tokens(tokenizer: Any, tmp_path: Path) -> None:
    splitting = AutoTokenizer.from_pretrained(TINY_MODEL, split_special_tokens=True)
    cache = FileCache(tmp_path, 10**6)
    expected = encode_rows([ROW], Renderer(splitting), config())
    assert encode_rows([ROW], Renderer(tokenizer), config(), cache) != expected
    assert encode_rows([ROW], Renderer(splitting), config(), cache) == expected
