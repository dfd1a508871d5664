"""What a report says of rows: signs, spellings, varieties, repeats, languages, tokens, findings; and the command."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tafdil.cli import app
from trainer_core.counter_sets import Pair
from trainer_core.data_report import Collector, report_of_rows, summary_of_rows, vocabulary_in
from trainer_core.data_report.duplicates import near
from trainer_core.data_report.languages import language_of
from trainer_core.data_report.rows_kept import Reservoir, Sampled
from trainer_core.data_report.sides import variety_of
from trainer_core.data_report.spelling import Spellings, signs_of
from trainer_core.errors import DataInvalid
from trainer_core.traits import Text

MODEL = Path(__file__).resolve().parents[2] / "tafdil" / "shipped" / "models" / "tafdil" / "tiny-arabic-qwen-2"
ARABIC = "ذهب الولد إلى المدرسة في الصباح"
FORMS = "ﻛﺘﺐ ﺍﻟﻄﺎﻟﺐ"


def mojibake(text: str, written: str, read: str) -> str:
    return text.encode(written).decode(read, "replace")


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        (ARABIC, {"hamza_letters", "ta_marbuta", "alef_maqsura"}),
        ("كَتَبَ", {"diacritics"}),
        ("كتـــب", {"tatweel"}),
        ("قال 12 و٣٤ و۵۶", {"western_digits", "arabic_indic_digits", "persian_digits"}),
        ("نعم، لا؟ yes, no?", {"arabic_marks", "western_marks", "latin_letters"}),
        ("نعم۔", {"persian_marks"}),
        ("کتاب", {"persian_letters"}),
        ("كتاب\u200fالولد", {"bidi_controls"}),
        ("كتاب\u200bالولد", {"zero_width"}),
        ("حسنا 👨\u200d👩\u200d👧", {"emoji"}),  # joiners within an emoji are not a fault
        (FORMS, {"presentation_forms"}),
        (" ".join(word[::-1] for word in FORMS.split()), {"presentation_forms", "reversed"}),
        (ARABIC.replace("الولد", "سردملا ةسردملا ىلع ةبتكملا"), {"hamza_letters", "ta_marbuta", "alef_maqsura", "reversed"}),
        ("استعمل الـapiجديد", {"tatweel", "latin_letters", "mixed_script_words"}),
        ("ana mesh 3aref 7aga", {"latin_letters", "western_digits", "arabizi"}),
        ("use mp3 and h264 for web2 video", {"latin_letters", "western_digits"}),
        ("It is a good salam, the 2nd and 3rd.", {"latin_letters", "western_digits", "western_marks"}),
        (unicodedata.normalize("NFD", "الآن"), {"hamza_letters", "not_nfc"}),
    ],
)
def test_signs_of_a_text(text: str, signs: set[str]) -> None:
    assert {sign for sign, _ in signs_of(Text(text))} == signs


@pytest.mark.parametrize(
    ("written", "read"), [("utf-8", "latin-1"), ("utf-8", "cp1252"), ("utf-8", "cp1256"), ("cp1256", "cp1252")]
)
def test_broken_encodings_are_noticed_and_sound_text_is_not(written: str, read: str) -> None:
    assert "mojibake" in dict(signs_of(Text(mojibake(ARABIC, written, read))))
    for sound in ("Él comió piña à la crème, naïve façade.", "Größe über Straße", ARABIC, "ظل الطالب", "غ غ ط ظ"):
        assert "mojibake" not in dict(signs_of(Text(sound))), sound


def test_an_unusual_spelling_is_one_that_the_file_mostly_has_otherwise() -> None:
    spellings = Spellings()
    spellings.add("chosen", Text(" ".join(["إلى المدرسة على"] * 20)))
    spellings.add("rejected", Text("الى المدرسه علي كتاب الى"))
    unusual = spellings.unusual()
    assert unusual == {
        "hamza": {"chosen": 0, "rejected": 2},
        "ya": {"chosen": 0, "rejected": 1},
        "ta_marbuta": {"chosen": 0, "rejected": 1},
    }
    assert spellings.examples()["hamza"][0] == ("الى", "إلى", 2)


@pytest.mark.parametrize(
    ("stated", "variety"),
    [
        ("msa", "msa"),
        ("Egyptian ", "egyptian"),
        ("ar_SA", "gulf"),
        ("شامي", "levantine"),
        ("darija", "maghrebi"),
        ("x", "other"),
    ],
)
def test_a_variety_is_what_the_row_states(stated: str, variety: str) -> None:
    assert variety_of({"dialect": stated}) == variety
    assert variety_of({"dialect": " "}) is None
    assert variety_of({"dialect": 3}) is None
    assert variety_of({}) is None


def test_a_language_is_known_by_its_script_or_by_its_words() -> None:
    texts = (ARABIC, "دلوقتي عايز أروح", "حال شما چطور است، خیلی ممنون از شما", "the black cat sat on the mat", "123 !")
    assert [language_of(Text(text)) for text in texts] == ["ar", "ar", "fa", "en", "none"]
    assert {language_of(Text(text)) for text in ("Paris", "No", "Ok.", "Да", "علی")} == {"unknown"}
    assert language_of(Text("東京")) != "unknown", "a script of its own"


def test_short_answers_are_not_in_another_language_and_all_answers_count() -> None:
    short = [{"prompt": "What is the capital of France?", "chosen": "Paris", "rejected": "No"} for _ in range(50)]
    languages = report_of_rows(short)["languages"]
    assert (languages["answers_in_another_language"], languages["answers"]) == (0, 100)
    assert languages["sides"]["chosen"] == {"unknown": 50}
    french = {**short[0], "chosen": "La capitale de la France est évidemment Paris, rien d'autre."}
    assert report_of_rows([*short, french])["languages"]["answers_in_another_language"] == 1
    texts = ("東京", "서울", "αθήνα", "ירושלים", "ბათუმი", "Երևան", "กรุงเทพ", "தமிழ்", "తెలుగు", "ಕನ್ನಡ", "മലയാളം")
    many = [{"prompt": ARABIC, "chosen": text, "rejected": "123"} for text in texts]
    languages = report_of_rows(many)["languages"]
    assert (len(languages["sides"]["chosen"]), languages["answers"]) == (8, 22)


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"سؤال {n}", "chosen": f"جواب أول {n}", "rejected": f"جواب ثان {n}", **more} for n in range(count)]


def test_repeats_and_contradictions_are_counted() -> None:
    own = rows(20)
    swapped = {"prompt": own[0]["prompt"], "chosen": own[0]["rejected"], "rejected": own[0]["chosen"]}
    report = report_of_rows([*own, own[3], swapped])
    assert report["duplicates"]["exact"] == {"rows": 1, "lines": [21]}
    assert report["duplicates"]["contradictions"] == {"rows": 2, "lines": [1, 22]}
    assert report["most_rows_of_a_prompt"] == 2
    assert {"contradictions", "duplicates"} <= {each["code"] for each in report["findings"]}

    def called(name: str) -> list[dict[str, Any]]:
        call = {"type": "function", "function": {"name": name, "arguments": "{}"}}
        return [{"role": "assistant", "content": "حسنا", "tool_calls": [call]}]

    calls = [{"prompt": "س", "chosen": called(one), "rejected": called(two)} for one, two in ("ab", "bc", "cd", "ab")]
    found = report_of_rows(calls)["duplicates"]
    assert (found["contradictions"]["rows"], found["exact"]) == (0, {"rows": 1, "lines": [4]})
    assert found["answers_in_several_rows"] == {"chosen": 2, "rejected": 2}
    labelled = [{"prompt": "س", "completion": "ج", "label": label} for label in (True, False)]
    assert report_of_rows(labelled)["duplicates"]["contradictions"] == {"rows": 2, "lines": [1, 2]}


def test_rows_that_are_nearly_the_same_are_found_and_equal_ones_are_not_among_them() -> None:
    words = [f"كلمة{n}" for n in range(40)]
    texts = [" ".join(words), " ".join([*words[:-1], "أخرى"]), " ".join(reversed(words)), " ".join(reversed(words))]
    sample = [Sampled(n, n, Pair("س", text, text), None) for n, text in enumerate(texts, start=1)]
    assert near(sample) == {"rows": 2, "lines": [[1, 2]]}


def test_equal_answers_are_not_compared_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasketch import MinHashLSH

    query, seen = MinHashLSH.query, []
    monkeypatch.setattr(MinHashLSH, "query", lambda index, sketch: seen.append(query(index, sketch)) or seen[-1])
    text = " ".join(f"كلمة{n}" for n in range(10))
    near([Sampled(n, n, Pair("س", text, text), None) for n in range(50)])
    assert max(map(len, seen)) == 1


def test_tokens_are_counted_by_side_and_variety_and_against_limits() -> None:
    vocabulary = vocabulary_in(MODEL, "tiny", max_prompt_length=256, max_length=30)
    assert vocabulary
    short, long = rows(30, dialect="msa"), rows(30, dialect="egyptian")
    for row in long:
        row["chosen"] = row["rejected"] + " x" + "ظ" * 40
    tokens = report_of_rows([*short, *long], vocabulary)["tokens"]
    strict = vocabulary_in(MODEL, "tiny", max_prompt_length=1, max_length=30)
    wordy = report_of_rows([short[0], {**long[0], "prompt": "س"}, long[1]], strict)["tokens"]
    assert (wordy["prompts_over_limit"], wordy["rows_over_limit"], wordy["rows_over_either_limit"]) == (2, 2, 3)
    assert tokens["varieties"]["msa"]["next_to_msa"] == 1.0
    assert tokens["varieties"]["egyptian"]["next_to_msa"] > 1.5
    assert tokens["rows_over_limit"] == 30
    assert tokens["prompts_over_limit"] == 0
    codes = [each["code"] for each in report_of_rows([*short, *long], vocabulary)["findings"]]
    assert "variety_costs" in codes
    assert "over_limit" in codes
    assert vocabulary_in(MODEL.parent, "none") is None


def test_a_vocabulary_counts_whole_texts_whatever_its_file_cuts_or_fills_up(tmp_path: Path) -> None:
    stored = json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    stored["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    stored["padding"] = {"strategy": {"Fixed": 100}, **padding}
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    texts = (ARABIC, ARABIC * 3)
    found, own = vocabulary_in(tmp_path, "cuts"), vocabulary_in(MODEL, "tiny")
    assert found
    assert own
    assert found.count(texts) == own.count(texts)


def test_the_sides_of_a_large_file_are_those_of_a_sample_of_all_its_rows() -> None:
    collector = Collector(measured_rows=100, sampled_rows=100)
    for line, row in enumerate(rows(1000), start=1):
        long = {**row, "chosen": row["chosen"] + " كلمة" * 50} if line > 900 else row
        collector.add(long, line)
    sides = collector.report(near=False)["sides"]
    assert sides["chosen"]["texts"] == 100
    assert 2 <= sides["chosen"]["signs"]["ta_marbuta"]["texts"] <= 20, "about a tenth, as in the file"


def test_no_rows_are_refused_in_words() -> None:
    with pytest.raises(DataInvalid, match="there are no rows"):
        report_of_rows([])


def test_a_report_is_json_and_the_same_for_the_same_rows() -> None:
    found = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows(30)]
    report = report_of_rows(found)
    assert json.loads(json.dumps(report)) == json.loads(json.dumps(report_of_rows(found)))
    assert report["shortcuts"]["note"]["message_code"] == "shortcut.few_rows"
    assert report_of_rows(rows(3))["shortcuts"]["note"]["message_code"] == "shortcut.too_few_rows"
    single = [{"prompt": f"سؤال {n}", "completion": f"جواب {n}", "label": n < 260} for n in range(270)]
    uneven, alike = report_of_rows(single)["shortcuts"], report_of_rows(single[:260])["shortcuts"]
    assert uneven["note"]["message_code"] in ("shortcut.label_rare", "shortcut.label_too_rare")
    assert (alike["note"]["message_code"], alike["none"], alike["rules"]) == ("shortcut.one_label", None, [])
    summary = summary_of_rows(rows(30))
    assert (summary["rows"], summary["sampled_rows"]) == (30, 30)
    assert summary["findings"] == [each for each in report["findings"] if each["code"] != "near_duplicates"]


def test_a_reservoir_keeps_everything_or_a_sample_of_its_size() -> None:
    few: Reservoir[int] = Reservoir(10)
    many: Reservoir[int] = Reservoir(10)
    for reservoir, count in ((few, 7), (many, 5000)):
        for number in range(count):
            place = reservoir.place()
            if place is not None:
                reservoir.put(place, number)
    assert few.kept == [*range(7)]
    assert len(set(many.kept)) == 10
    assert max(many.kept) > 2500, "later rows have their chance"


def test_the_command_line_reports_on_a_file_without_a_service(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    planted = [{**row, "chosen": row["chosen"] + "!"} for row in rows(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in planted), encoding="utf-8")
    options = {"TAFDIL_LANG": "en", "COLUMNS": "200"}
    shown = CliRunner().invoke(app, ["data", "report", str(path)], env=options)
    assert shown.exit_code == 0, shown.output
    assert "“more exclamation marks” picks the chosen answer in 100% of the pairs" in shown.output
    assert "60 rows are not much to judge by" in shown.output
    arabic = CliRunner().invoke(app, ["data", "report", str(path)], env={**options, "TAFDIL_LANG": "ar"})
    assert "علامات تعجب أكثر" in arabic.output
    as_json = CliRunner().invoke(
        app, ["data", "report", str(path), "--json", "--model", "tafdil/tiny-arabic-qwen-2"], env=options
    )
    found = json.loads(as_json.stdout)
    assert found["shortcuts"]["named"][0]["rule"] == "exclamation_marks"
    assert found["tokens"]["model"] == "tafdil/tiny-arabic-qwen-2"
    refused = CliRunner().invoke(app, ["data", "report", str(path), "--model", "nobody/nothing"], env=options)
    assert refused.exit_code != 0
    assert "nobody/nothing" in refused.output + refused.stderr
    path.write_text('{"prompt": 1}\n', encoding="utf-8")
    assert CliRunner().invoke(app, ["data", "report", str(path)], env=options).exit_code == 3
