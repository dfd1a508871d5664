"""What rows still teach once they are tokens, and what looks like a mistake in them. Uses the shipped tokenizer."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.conftest import TINY_MODEL
from tests.fakes import RecordingObserver
from tests.training import CONFIGS, write_rows
from trainer_core import tokenizer_check
from trainer_core.data_loader import PreferenceData
from trainer_core.errors import DataInvalid, DataOverlong, ModelRefused
from trainer_core.row_encoding import TokenReport, encode_rows
from trainer_core.row_signal import Contradictions, Findings
from trainer_core.rows import check_rows
from trainer_core.tokens import Renderer
from trainer_core.wording import say

GOOD = {"prompt": "ما عاصمة مصر؟", "chosen": "القاهرة.", "rejected": "لا أعرف."}
LONG = "بداية مشتركة طويلة جدا " * 30


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(TINY_MODEL))


def encoded(renderer: Renderer, rows: list[Any], method: str = "ipo", **fields: Any) -> tuple[list[Any], TokenReport]:
    settings = CONFIGS[method](model_name="m", dataset_path="d", **fields)
    return encode_rows(check_rows(rows, method), renderer, settings)


def found(report: TokenReport) -> dict[str, list[int]]:
    return report.findings.rows


def test_pairs_that_are_equal_after_the_cut_are_dropped(renderer: Renderer) -> None:
    cut = {"prompt": "س", "chosen": f"{LONG}حسنة", "rejected": f"{LONG}سيئة"}
    rows, report = encoded(renderer, [cut, GOOD, cut], max_prompt_length=32, max_length=64)
    assert [row["row"] for row in rows] == [2]
    assert found(report) == {"answers_equal": [1, 3]}
    assert report.as_dict()["findings"] == [{"code": "answers_equal", "rows": 2, "first_rows": [1, 3], "dropped": True}]
    assert encoded(renderer, [cut, GOOD, cut], max_length=512)[1].findings.rows == {}


def test_pairs_that_the_template_makes_equal_are_dropped() -> None:
    trimming = AutoTokenizer.from_pretrained(TINY_MODEL)
    trimming.chat_template = trimming.chat_template.replace("message['content']", "message['content'] | trim")
    rows, report = encoded(Renderer(trimming), [GOOD, {"prompt": "س", "chosen": " نعم\n", "rejected": "نعم"}])
    assert [row["row"] for row in rows] == [1]
    assert found(report)["answers_equal"] == [2]


def test_answers_and_prompts_that_were_cut_away_are_dropped(renderer: Renderer) -> None:
    long = {"prompt": "كلمة " * 200, "completion": "جواب", "label": True}
    rows, report = encoded(renderer, [long], "kto", max_prompt_length=64, max_length=65)
    assert (rows, found(report)) == ([], {"answer_empty": [1]})
    # The end of the user's turn and the assistant's opening: what the template writes after a prompt.
    after = renderer.after_prompt_tokens
    assert found(encoded(renderer, [long], "kto", max_prompt_length=after)[1]) == {"prompt_lost": [1]}
    assert found(encoded(renderer, [long], "kto", max_prompt_length=after + 1)[1]) == {}


def test_rows_that_contradict_each_other_are_named(renderer: Renderer) -> None:
    turned = {**GOOD, "chosen": GOOD["rejected"], "rejected": GOOD["chosen"]}
    other = {**GOOD, "prompt": "ما عاصمة السودان؟"}
    _, report = encoded(renderer, [GOOD, other, turned, GOOD])
    assert found(report) == {"contradictory_rows": [1, 3, 4]}
    labelled = [{"prompt": "س", "completion": "ج", "label": label} for label in (True, True, False)]
    labelled.append({"prompt": "ص", "completion": "ج", "label": True})
    assert found(encoded(renderer, labelled, "kto")[1]) == {"contradictory_rows": [1, 2, 3]}
    assert found(encoded(renderer, labelled[:2], "kto")[1]) == {}


def test_contradictions_are_found_in_time_that_grows_with_the_rows(renderer: Renderer) -> None:
    """As many looks as rows: twice the rows never cost four times the looks."""
    contradictions, findings = Contradictions(), Findings()
    for number in range(50_000):
        contradictions.look({"prompt_ids": [1], "completion_ids": [2], "label": number % 2 > 0, "row": number})
    contradictions.note(findings)
    assert findings.rows == {"contradictory_rows": list(range(50_000))}


def test_a_pair_counts_once_where_kto_takes_it_apart(renderer: Renderer) -> None:
    cut = {"prompt": "س", "chosen": f"{LONG}حسنة", "rejected": f"{LONG}سيئة"}
    hostile = {**GOOD, "prompt": f"{GOOD['prompt']}<|im_end|>"}
    rows, report = encoded(renderer, [cut, hostile, GOOD], "kto", max_prompt_length=60, max_length=100)
    assert [(row["row"], row["label"]) for row in rows] == [(2, True), (2, False), (3, True), (3, False)]
    assert found(report) == {"answers_equal": [1], "special_tokens_in_text": [2]}


@pytest.mark.parametrize("nothing", ["\u200f\u200e\u202b", "ـــ", "\u200d", " \u00ad\ufeff "])
def test_text_that_nobody_sees_is_named(nothing: str, renderer: Renderer) -> None:
    rows = [{**GOOD, name: nothing} for name in ("prompt", "chosen", "rejected")]
    assert found(encoded(renderer, rows)[1])["invisible_text"] == [1, 2, 3]


def test_joiners_inside_a_word_are_seen(renderer: Renderer) -> None:
    words = {**GOOD, "chosen": "می\u200cروم", "rejected": "میروم"}
    assert found(encoded(renderer, [words])[1]) == {}


@pytest.mark.parametrize("more", ["\u200f", " ", "\n", "ـ"])
def test_a_difference_that_nobody_sees_is_named(more: str, renderer: Renderer) -> None:
    _, report = encoded(renderer, [{**GOOD, "rejected": GOOD["chosen"] + more}, GOOD])
    assert found(report) == {"invisible_difference": [1]}


def test_answers_that_differ_in_their_thoughts_or_calls_are_pairs() -> None:
    """Where the template renders them; where it does not, nothing is left to learn."""

    def pair(**fields: tuple[Any, Any]) -> dict[str, Any]:
        sides = ([{"role": "assistant", "content": "نعم.", **{k: v[i] for k, v in fields.items()}}] for i in (0, 1))
        return {"prompt": "س", **dict(zip(("chosen", "rejected"), sides, strict=True))}

    def call(city: str) -> list[Any]:
        return [{"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}]

    rows = [
        pair(reasoning_content=("تفكير جيد", "تفكير سيئ")),
        pair(tool_calls=(call("القاهرة"), call("الخرطوم"))),
        pair(content=(None, None), tool_calls=(call("القاهرة"), call("الخرطوم"))),
    ]
    from tests.qwen import make_tokenizer

    thinking = Renderer(make_tokenizer("qwen3"))
    kept, report = encoded(thinking, rows)
    assert (len(kept), found(report)) == (3, {})
    assert encoded(Renderer(AutoTokenizer.from_pretrained(TINY_MODEL)), rows[:2])[0] == []
    with pytest.raises(DataInvalid, match="is the same as chosen"):
        check_rows([pair(reasoning_content=("تفكير", "تفكير"))], "ipo")


def test_prompts_that_are_rendered_already_and_messages_as_text_are_named(renderer: Renderer) -> None:
    rendered = {**GOOD, "prompt": f"<|im_start|>user\n{GOOD['prompt']}<|im_end|>\n<|im_start|>assistant\n"}
    other_family = {**GOOD, "prompt": f"[INST] {GOOD['prompt']} [/INST]"}
    as_json = {**GOOD, "chosen": '[{"role": "assistant", "content": "القاهرة."}]'}
    _, report = encoded(renderer, [rendered, other_family, as_json, {**GOOD, "chosen": '[{"name": "مصر"}]'}, GOOD])
    assert found(report) == {
        "special_tokens_in_text": [1],
        "prompt_already_rendered": [1, 2],
        "answer_is_messages": [3],
    }
    split, allow = (
        dict(report.findings.messages(say("part.train"), mode))["special_tokens_in_text"] for mode in ("split", "allow")
    )
    assert (split.code, allow.code) == ("special_tokens_in_text_plain", "special_tokens_in_text_control")
    assert split.params["tokens"] == ["<|im_start|>", "<|im_end|>"]
    assert "encoded as plain text" in split
    assert "as control tokens" in allow


# -- through the data of a run


def load(folder: Path, rows: list[Any], method: str = "ipo", **fields: Any) -> tuple[PreferenceData, RecordingObserver]:
    observer = RecordingObserver()
    path = write_rows(folder / "rows.jsonl", rows)
    config = CONFIGS[method](model_name="team/model", dataset_path=path, output_dir=str(folder), **fields)
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    data = PreferenceData(config, Renderer(tokenizer, special_tokens_in_text=config.special_tokens_in_text), observer)
    data.load()
    return data, observer


def codes(observer: RecordingObserver) -> list[str]:
    return list(observer.warnings)


def test_a_run_without_any_signal_is_refused(tmp_path: Path) -> None:
    cut = [{"prompt": f"س {i}", "chosen": f"{LONG}أ", "rejected": f"{LONG}ب"} for i in range(8)]
    with pytest.raises(
        DataOverlong, match=r"no usable row is left \(8 rows: both answers have the same token ids\)"
    ) as caught:
        load(tmp_path, cut, max_prompt_length=32, max_length=64)
    assert [detail.line for detail in caught.value.details] == list(range(1, 9))
    same = [{"prompt": "س", "chosen": "شَّ", "rejected": "شَّ\u200f"}]
    assert codes(load(tmp_path, same)[1]) == ["invisible_difference"]


def test_what_was_found_is_warned_of_and_reported(tmp_path: Path) -> None:
    data, observer = load(tmp_path, [{**GOOD, "prompt": f"{GOOD['prompt']}<|im_end|>"}, GOOD])
    assert observer.warnings["special_tokens_in_text"].startswith(
        "training rows: 1 row (1) whose text contains control tokens"
    )
    (finding,) = data.report()["train"]["findings"]
    assert finding == {"code": "special_tokens_in_text", "rows": 1, "first_rows": [1], "dropped": False}
    with pytest.raises(DataInvalid, match=r"control token <\|im_end\|>") as caught:
        load(tmp_path, [GOOD, {**GOOD, "prompt": "<|im_end|>"}], special_tokens_in_text="refuse")
    assert [detail.line for detail in caught.value.details] == [2]


def test_rows_that_are_dropped_on_the_way_to_a_dataset_are_warned_of(tmp_path: Path) -> None:
    data, observer = load(tmp_path, [GOOD, GOOD], max_prompt_length=32, max_length=64)
    cut = {"prompt": "س", "chosen": f"{LONG}أ", "rejected": f"{LONG}ب"}
    mapped = Dataset.from_list([cut, GOOD]).map(data.tokenize_and_format, batched=True)
    assert len(mapped) == 1
    assert "1 row dropped (1)" in observer.warnings["answers_equal"]


def test_rows_that_are_evaluated_later_are_no_part_of_the_report(tmp_path: Path) -> None:
    data, _ = load(tmp_path, [GOOD, {**GOOD, "prompt": "س"}])
    before = data.report()
    assert data.prepare([GOOD])
    assert data.report() == before


def test_a_split_keeps_the_rows_of_a_prompt_together(tmp_path: Path) -> None:
    """Also where each prompt has more rows than the share that is asked for."""
    rows = [{"prompt": f"سؤال {i % 8}", "completion": f"جواب {i}", "label": i % 3 > 0} for i in range(160)]
    data, observer = load(tmp_path, rows, "kto", validation_split=0.1)
    apart = {row["prompt"] for row in data.validation}
    assert len(data.validation) == 20
    assert len(apart) == 1
    assert not apart & {row["prompt"] for row in data.train}
    assert "validation_overlaps" not in codes(observer)
    data, _ = load(tmp_path, rows, "kto")
    assert not {row["prompt"] for row in data.held_back} & {row["prompt"] for row in data.train}


def test_prompts_on_both_sides_are_warned_of(tmp_path: Path) -> None:
    one_prompt = [{"prompt": "سؤال", "completion": f"جواب {i}", "label": i % 2 > 0} for i in range(40)]
    data, observer = load(tmp_path, one_prompt, "kto", validation_split=0.1)
    assert (len(data.validation), "validation_overlaps" in codes(observer)) == (4, True)
    same = write_rows(tmp_path / "same.jsonl", [GOOD])
    assert codes(load(tmp_path, [GOOD, {**GOOD, "prompt": "س"}], eval_dataset_path=same)[1]) == ["validation_overlaps"]


# -- tokenizers that lose text


def make_tokenizer(words: dict[str, int], **options: Any) -> Any:
    model = Tokenizer(WordLevel({"<unk>": 0, **words}, unk_token="<unk>"))
    if options.pop("lowercase", False):
        model.normalizer = Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", eos_token="<unk>")


def test_a_tokenizer_that_loses_the_text_is_refused() -> None:
    assert tokenizer_check.check(AutoTokenizer.from_pretrained(TINY_MODEL), [GOOD], "m") is None
    with pytest.raises(ModelRefused, match="loses 100% of the text") as caught:
        tokenizer_check.check(make_tokenizer({}), [GOOD], "team/model")
    assert "team/model" in caught.value.message

    class Silent:
        def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
            return {"input_ids": [[] for _ in texts]}

        def decode(self, ids: list[int], **_: Any) -> str:
            return ""

    with pytest.raises(ModelRefused, match="loses 100% of the text"):
        tokenizer_check.check(Silent(), [GOOD], "m")


def test_a_smaller_loss_is_told_with_its_share_and_place() -> None:
    rows = [{"prompt": "cairo", "completion": "cairo", "label": True} for _ in range(9)]
    rows.append({"prompt": "cairo", "completion": "Cairo", "label": True})
    words = {"cairo": 1, "Cairo": 2}
    assert tokenizer_check.check(make_tokenizer(words), rows, "m") is None
    shouted = [{"prompt": "CAIRO", "completion": "CAIRO", "label": True}]
    assert "loses 100%" in (tokenizer_check.check(make_tokenizer(words, lowercase=True), shouted, "m") or "")
    loss = tokenizer_check.check(make_tokenizer(words, lowercase=True), rows, "m")
    assert loss is not None
    assert "loses 1% of the text: “Cairo” comes back as “cairo”" in loss
