"""Shortcuts: files with one planted trait and clean ones, and intervals against their definitions."""

import random
from itertools import product
from pathlib import Path

import pytest

from benchmarks.planted_files import CLEAN, PLANTED, Planted, rows_of
from trainer_core.counter_sets import Pair
from trainer_core.data_report import report_of_file
from trainer_core.data_report import shortcuts as shortcuts_of
from trainer_core.data_report.intervals import auc, critical, interval, share_of_pairs, smallest_above, wilson
from trainer_core.data_report.judging import judge
from trainer_core.data_report.rows_kept import Sampled, Single, numbers_of
from trainer_core.data_report.shortcuts import Verdict
from trainer_core.traits import label_auc

DATA = Path(__file__).resolve().parents[2] / "tafdil" / "shipped" / "data"
FOUND_AT_LEAST, ALARMS_AT_MOST = 18, 1


def verdict_of(file: Planted, rows: int = 400) -> Verdict:
    numbers, sample = [], []
    for line, row in enumerate(rows_of(file, rows), start=1):
        is_pair = file.shape == "pairs"
        own = (
            Pair(row["prompt"], row["chosen"], row["rejected"])
            if is_pair
            else Single(row["prompt"], row["completion"], row["label"])
        )
        key = hash(row["prompt"])
        numbers.append(numbers_of(own, key))
        sample.append(Sampled(line, key, own, row["dialect"]))
    return judge(numbers, sample)


def test_planted_shortcuts_are_named_first_and_clean_files_raise_no_alarm() -> None:
    assert len({file.kind for file in PLANTED}) == 10
    assert (len(PLANTED), len(CLEAN)) == (20, 20)
    assert {file.shape for file in PLANTED} == {"pairs", "labels"}
    missed, alarms = {}, {}
    for file in (*PLANTED, *CLEAN):
        named = [each.rule.name for each in verdict_of(file).named]
        if file in CLEAN and named:
            alarms[file.name] = named
        if file in PLANTED and (not named or named[0] not in file.traits):
            missed[file.name] = named
    print(f"missed: {missed}, false alarms: {alarms}")
    assert len(PLANTED) - len(missed) >= FOUND_AT_LEAST, missed
    assert len(alarms) <= ALARMS_AT_MOST, alarms


def test_what_only_follows_from_a_shortcut_is_listed_with_it() -> None:
    diacritics = next(file for file in PLANTED if file.kind == "diacritics" and file.shape == "pairs")
    (head,) = verdict_of(diacritics).named
    assert head.rule.name == "diacritics"
    # Words with marks are longer. Without the marks they are as long as others.
    assert {"mean_word_length", "longest_word"} <= {*head.agreeing, *head.following}


def test_a_longer_answer_has_more_of_everything_and_that_is_one_shortcut() -> None:
    length = next(file for file in PLANTED if file.kind == "length" and file.shape == "pairs")
    head = verdict_of(length).named[0]
    assert "words" in head.agreeing
    assert {"full_stops", "hamza_letters", "ta_marbuta"} <= set(head.following)


def test_a_polite_phrase_is_one_shortcut_although_it_has_many_words() -> None:
    polite = next(file for file in PLANTED if file.kind == "polite_opening" and file.shape == "pairs")
    (head,) = verdict_of(polite).named
    assert {"word:سؤالك", "word:الجميل"} <= {head.rule.name, *head.agreeing}


@pytest.mark.parametrize("path", sorted(DATA.iterdir()), ids=lambda path: path.name)
def test_the_data_that_ship_pass_their_own_report(path: Path) -> None:
    found = report_of_file(path)
    assert found["shortcuts"]["named"] == []
    assert [each["code"] for each in found["findings"]] == []
    assert found["rows"] == found["measured_rows"] == found["sampled_rows"]


# -- intervals


def test_repeating_every_row_under_its_prompt_makes_nothing_surer() -> None:
    rng = random.Random(1)
    marks = [rng.choice((0, 1, 2, 2)) for _ in range(80)]
    once, thrice = share_of_pairs(marks, range(80)), share_of_pairs(marks * 3, [*range(80)] * 3)
    assert interval(once, 30) == pytest.approx(interval(thrice, 30))
    assert thrice.design_effect == pytest.approx(3 * once.design_effect)
    values, labels = [rng.random() for _ in range(80)], [rng.random() < 0.4 for _ in range(80)]
    alone, again = auc(values, labels, range(80)), auc(values * 3, labels * 3, [*range(80)] * 3)
    assert alone
    assert again
    assert (again.share, again.variance) == pytest.approx((alone.share, alone.variance))


def test_an_auc_and_its_variance_are_those_of_their_definition() -> None:
    rng = random.Random(2)
    values = [float(rng.randint(0, 6)) for _ in range(40)]
    labels = [rng.random() < 0.5 for _ in range(40)]
    found = auc(values, labels, range(40))
    assert found
    assert found.share == pytest.approx(label_auc(values, labels))
    sides = [[value for value, label in zip(values, labels, strict=True) if label == side] for side in (True, False)]
    wins = {(a, b): 1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(*sides)}
    parts = [
        *((sum(wins[a, b] for b in sides[1]) / len(sides[1]) - found.share) / len(sides[0]) for a in sides[0]),
        *((sum(wins[a, b] for a in sides[0]) / len(sides[0]) - found.share) / len(sides[1]) for b in sides[1]),
    ]
    assert found.variance == pytest.approx(40 / 39 * sum(part * part for part in parts))
    assert auc([1.0], [True], [1]) is None


@pytest.mark.parametrize("agree", [0.0, 0.9])
def test_intervals_cover_as_often_as_they_say(agree: float) -> None:
    """Prompts with one to four rows, which repeat the mark of the prompt's first row with probability `agree`."""
    rng, truth, covered, tries = random.Random(3), 0.65, 0, 300
    for _ in range(tries):
        marks: list[int] = []
        prompts: list[int] = []
        for prompt in range(60):
            first = 2 * (rng.random() < truth)
            for _ in range(rng.randint(1, 4)):
                marks.append(first if rng.random() < agree else 2 * (rng.random() < truth))
                prompts.append(prompt)
        low, high = interval(share_of_pairs(marks, prompts), 1)
        covered += low <= truth <= high
    assert covered / tries >= 0.92


def test_the_smallest_share_that_would_be_named_is_where_the_interval_begins_above_the_bound() -> None:
    for rows in (60, 200, 1000):
        smallest = smallest_above(0.6, rows, critical(50, rows))
        assert smallest
        assert wilson(smallest, rows, critical(50, rows))[0] == pytest.approx(0.6, abs=1e-6)
    assert smallest_above(0.6, 4, critical(50, 4)) is None


def test_one_prompt_proves_nothing_however_many_rows_it_has() -> None:
    assert interval(share_of_pairs([2] * 500, [0] * 500), 50) == (0.0, 1.0)


def test_quantiles_are_those_of_student() -> None:
    """From printed tables: t with 9 and 29 degrees of freedom at 97.5 %, and at 99.5 %, which is two rules at 99 %."""
    assert critical(1, 10) == pytest.approx(2.262, abs=0.001)
    assert critical(5, 10) == pytest.approx(3.250, abs=0.002)
    assert critical(5, 30) == pytest.approx(2.756, abs=0.001)


def test_few_rows_say_what_they_could_not_have_shown() -> None:
    few = verdict_of(CLEAN[0], 60)
    assert few.named == []
    assert few.smallest
    assert 0.75 < few.smallest < 0.95
    assert shortcuts_of.FEW_ROWS == 200


@pytest.mark.parametrize(("prompts", "each"), [(5, 100), (20, 50), (40, 5), (200, 1)])
def test_no_rule_is_surer_than_one_that_is_always_right(prompts: int, each: int) -> None:
    rng, keys = random.Random(4), [prompt for prompt in range(prompts) for _ in range(each)]
    for effect in (1.0, 2.0, 30.0):
        always, _ = interval(share_of_pairs([2] * len(keys), keys), 60, effect)
        for wrong in (1, 2, 5, 20):
            marks = [2] * len(keys)
            for place in rng.sample(range(len(keys)), wrong):
                marks[place] = 0
            assert interval(share_of_pairs(marks, keys), 60, effect)[0] < always, (effect, wrong)


def judged(rows: list[tuple[str, Pair | Single]]) -> Verdict:
    sample = [Sampled(line, hash(prompt), row, None) for line, (prompt, row) in enumerate(rows, start=1)]
    return judge([numbers_of(each.row, each.prompt_key) for each in sample], sample)


WORDS = ["البحر", "السماء", "الطريق", "الكتاب", "المدينة", "النهر", "الجبل", "الشجرة", "البيت", "الحديقة"]


def some_words(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(4, 12)))


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_rule_that_is_right_in_every_row_of_few_prompts_is_named(wrong: int) -> None:
    rng = random.Random(5)
    rows: list[tuple[str, Pair | Single]] = []
    for place in range(1000):
        prompt = f"سؤال {place % 12}"
        answers = (f"{some_words(rng)} 🙂", some_words(rng))
        rows.append((prompt, Pair(prompt, *(answers if place >= wrong else answers[::-1]))))
    found = judged(rows)
    assert found.named[0].rule.name == "emoji"
    assert found.smallest
    assert {each.rule.name for each in found.tried if each.is_named} <= {
        each.rule.name for each in found.tried if each.share >= found.smallest
    }


def labelled(rng: random.Random, desirable: int, undesirable: int) -> list[tuple[str, Pair | Single]]:
    labels = [True] * desirable + [False] * undesirable
    return [(f"سؤال {n}", Single(f"سؤال {n}", some_words(rng), label)) for n, label in enumerate(labels)]


def test_labels_out_of_balance_show_less_than_their_rows_suggest() -> None:
    rng = random.Random(6)
    balanced, rare, rarest = (judged(labelled(rng, count, 1000 - count)).smallest for count in (500, 20, 4))
    assert balanced
    assert rare
    assert balanced < 0.70
    assert rare > 0.80, "as 59 independent rows"
    assert rarest is None


def test_a_list_is_named_as_a_list_whatever_its_bullets_are() -> None:
    for marker in ("- ", "• ", "* ", "{}. "):
        rng = random.Random(7)
        rows: list[tuple[str, Pair | Single]] = []
        for place in range(200):
            answers = ["\n".join(f"{mark.format(n)}{some_words(rng)}" for n in range(1, 5)) for mark in (marker, "")]
            rows.append((f"سؤال {place}", Pair(f"سؤال {place}", *answers)))
        assert judged(rows).named[0].rule.name == "list_markers", marker
