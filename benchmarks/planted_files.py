"""Preference files in which one trait was planted, and clean ones: what a detector of shortcuts is measured on.

python -m benchmarks.planted_files --out build/planted    # writes all forty as JSONL

Every file is drawn from its own seed. Both answers of a prompt are drawn from one distribution: two to five sentences about
the prompt's subject, in one of six varieties, with digits, marks, greetings, emoji, Latin words and vowel signs here and
there. They differ in one fact, right in the preferred answer and wrong in the other, which no trait shows. A prompt has one
to three rows.

A planted file adds one trait: in a share of the rows, its strength, the preferred answer has more of the trait than the
other; in the rest it is the other way round. `PLANTED` has ten kinds of trait, each once in pairs and once in labelled rows.
This module knows nothing of the detector.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]
Edit = Callable[[random.Random, str, "Answer"], "Answer"]
Shape = Literal["pairs", "labels"]

ROWS = 400
VARIETIES = ("msa", "egyptian", "gulf", "levantine", "maghrebi", "other")
STRENGTHS = (1.0, 0.95, 0.9, 0.85)

SUBJECTS = (
    *("القهوة", "التمر", "الرياضة", "النوم المبكر", "القراءة", "السفر بالقطار", "البرمجة", "الطبخ في البيت", "شرب الماء"),
    *(
        "زراعة الخضار",
        "تعلم اللغات",
        "الادخار",
        "الرسم بالألوان",
        "التصوير",
        "كتابة اليوميات",
        "ركوب الدراجة",
        "العمل التطوعي",
    ),
    *("حفظ الشعر", "تربية النحل", "السباحة", "الخط العربي", "صيانة السيارة", "ترتيب المكتب", "المشي في الصباح"),
)
QUESTIONS = (
    *("ما فوائد {x}؟", "كيف أبدأ في {x}؟", "هل تنصحني بـ {x}؟", "اشرح لي أهمية {x} باختصار.", "كم مرة في الأسبوع تكفي {x}؟"),
    *("إيه رأيك في {x}؟", "شو أحسن وقت لـ {x}؟", "وش تقول عن {x}؟", "علاش الناس كتهضر على {x}؟", "أريد نصيحة حول {x}."),
)
ABOUT = (
    *("يتحدث كثير من الناس عن {x} هذه الأيام", "أرى أن {x} مفيدة لمن يصبر عليها", "بدأ اهتمام جيراننا بموضوع {x} منذ سنوات"),
    *("موضوع {x} واسع وله جوانب كثيرة", "يمكن أن تصبح {x} جزءا من يومك", "لا تحتاج {x} إلى مال كثير في البداية"),
)
GENERAL = (
    *(
        "ابدأ بخطوات صغيرة ثم زد الوقت تدريجيا",
        "اختر وقتا ثابتا كل يوم",
        "يفضل أن تسأل شخصا لديه خبرة",
        "لا تقارن نفسك بالآخرين",
    ),
    *(
        "سجل ما تنجزه في دفتر صغير",
        "النتائج تظهر بعد أسابيع من الالتزام",
        "خذ قسطا من الراحة عند التعب",
        "المهم هو الاستمرار",
    ),
    *(
        "هناك دراسات كثيرة تؤيد هذا الرأي",
        "يختلف الأمر من شخص إلى آخر",
        "جرب أكثر من طريقة قبل أن تقرر",
        "شارك أصدقاءك ما تعلمته",
    ),
    *(
        "تذكر أن الأخطاء جزء من الطريق",
        "ابتعد عن الهاتف في هذا الوقت",
        "اقرأ عن تجارب غيرك واستفد منها",
        "ضع هدفا واضحا لكل شهر",
    ),
    *("الأمر كله يحتاج شوية صبر", "خذها واحدة واحدة ولا تستعجل", "جرب بنفسك وشوف النتيجة", "كل بداية بتكون صعبة شوي"),
)
COUNTED = (
    *(
        "يكفي {n} مرات في الأسبوع",
        "خصص {n} دقيقة في اليوم",
        "يعرف الناس ذلك منذ عام {n}",
        "وصل عدد المهتمين إلى {n} ألف شخص",
    ),
    *("تحتاج إلى {n} أسابيع حتى تعتاد", "يبلغ السعر حوالي {n} دراهم"),
)
OPENINGS = ("بصراحة", "في رأيي", "باختصار", "عادة", "من تجربتي", "كما تعلم", "الحقيقة", "عموما")
LATIN = ("online", "app", "video", "Google", "YouTube", "email", "blog", "PDF", "Excel", "podcast")
EMOJI = ("🙂", "👍", "🌹", "✨", "📚", "😊", "🚀")
HARAKAT = "\u064e\u064f\u0650\u0652"
LETTERS = re.compile("[\u0621-\u063a\u0641-\u064a]")
WESTERN, ARABIC_INDIC = "0123456789", "٠١٢٣٤٥٦٧٨٩"
POLITE, PLAIN = "شكرا على سؤالك الجميل", "هناك جواب لهذا السؤال"
"""Of equal length in words, letters and marks."""


@dataclass
class Answer:
    """An answer before it is written out: its sentences, and what goes around them."""

    sentences: list[str]
    joints: list[str]
    """What stands after each sentence."""
    opening: str = ""
    emoji: str = ""
    digits: str = WESTERN

    def text(self) -> str:
        body = "".join(sentence + joint for sentence, joint in zip(self.sentences, self.joints, strict=True)).rstrip()
        whole = " ".join(part for part in (self.opening, body, self.emoji) if part)
        return whole.translate(str.maketrans(WESTERN, self.digits))


@dataclass(frozen=True)
class Planted:
    """A file: one kind of trait planted in a share of its rows, or none.

    Attributes:
        kind: a key of `KINDS`, or `clean`.
        traits: names of traits any of which states the planted shortcut.
    """

    kind: str
    shape: Shape
    strength: float
    seed: int
    traits: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.shape}_{self.seed}"


# -- one answer


def some_answer(rng: random.Random, subject: str, number: int) -> Answer:
    """An answer about a subject that states a number."""
    sentences = [rng.choice(ABOUT).format(x=subject), rng.choice(COUNTED).format(n=number)]
    sentences += rng.sample(GENERAL, rng.randint(0, 3))
    if rng.random() < 0.3:
        sentences.append(rng.choice(COUNTED).format(n=rng.randint(2, 2020)))
    rng.shuffle(sentences)
    comma, end = rng.choice(("،", "،", "،", ",")), rng.choice((".", ".", ".", "!", ""))
    joints = [rng.choice((f"{comma} ", ". ", ". ", "\n")) for _ in sentences]
    joints[-1] = end
    answer = Answer(sentences, joints, digits=rng.choice((WESTERN, ARABIC_INDIC)))
    _decorate(rng, answer)
    return answer


def _decorate(rng: random.Random, answer: Answer) -> None:
    """What people add here and there."""
    if rng.random() < 0.15:
        answer.opening = f"{rng.choice(OPENINGS)}{rng.choice(('،', '', ':'))}"
    if rng.random() < 0.06:
        answer.emoji = rng.choice(EMOJI)
    for chance, change in ((0.08, _in_latin), (0.06, _bold), (0.05, _stretched), (0.08, _voweled)):
        if rng.random() < chance:
            place = rng.randrange(len(answer.sentences))
            answer.sentences[place] = change(rng, answer.sentences[place])


def _at_a_word(rng: random.Random, sentence: str, change: Callable[[str], str], least: int = 4) -> str:
    words = sentence.split(" ")
    places = [place for place, word in enumerate(words) if len(LETTERS.findall(word)) >= least] or [0]
    place = rng.choice(places)
    words[place] = change(words[place])
    return " ".join(words)


def _in_latin(rng: random.Random, sentence: str) -> str:
    return _at_a_word(rng, sentence, lambda word: f"{word} {rng.choice(LATIN)}", 1)


def _bold(rng: random.Random, sentence: str) -> str:
    return _at_a_word(rng, sentence, lambda word: f"**{word}**")


def _stretched(rng: random.Random, sentence: str) -> str:
    def stretch(word: str) -> str:
        place = rng.randrange(1, len(word)) if len(word) > 1 else len(word)
        return word[:place] + "ـ" * rng.randint(1, 3) + word[place:]

    return _at_a_word(rng, sentence, stretch)


def _voweled(rng: random.Random, sentence: str) -> str:
    return _at_a_word(rng, sentence, lambda word: LETTERS.sub(lambda letter: letter[0] + rng.choice(HARAKAT), word))


def _each(rng: random.Random, answer: Answer, change: Callable[[random.Random, str], str], most: int) -> Answer:
    """Changes up to `most` of the sentences, and at least one."""
    for place in rng.sample(range(len(answer.sentences)), min(len(answer.sentences), rng.randint(1, most))):
        answer.sentences[place] = change(rng, answer.sentences[place])
    return answer


def _each_sentence(answer: Answer, pattern: str, by: str = "") -> Answer:
    answer.sentences = [re.sub(pattern, by, sentence).strip() for sentence in answer.sentences]
    return answer


# -- the kinds: how an answer is given much of a trait, or little


def _long(rng: random.Random, subject: str, answer: Answer) -> Answer:
    for sentence in rng.sample(GENERAL, rng.randint(3, 5)):
        answer.sentences.insert(0, sentence)
        answer.joints.insert(0, rng.choice(("، ", ". ")))
    return answer


def _as_it_is(rng: random.Random, subject: str, answer: Answer) -> Answer:
    return answer


def _with_digits(digits: str) -> Edit:
    def edit(rng: random.Random, subject: str, answer: Answer) -> Answer:
        answer.digits = digits
        return answer

    return edit


def _with(change: Callable[[random.Random, str], str], most: int, without: str, by: str = "") -> tuple[Edit, Edit]:
    """Much: the change in some sentences. Little: what a pattern matches is replaced."""

    def much(rng: random.Random, subject: str, answer: Answer) -> Answer:
        return _each(rng, answer, change, most)

    def little(rng: random.Random, subject: str, answer: Answer) -> Answer:
        return _each_sentence(answer, without, by)

    return much, little


def _with_commas(rng: random.Random, subject: str, answer: Answer) -> Answer:
    answer.joints = ["، "] * (len(answer.joints) - 1) + ["."]
    return answer


def _with_stops(rng: random.Random, subject: str, answer: Answer) -> Answer:
    answer.opening = answer.opening.rstrip("،:")
    answer.joints = [". "] * (len(answer.joints) - 1) + ["."]
    return answer


def _with_emoji(rng: random.Random, subject: str, answer: Answer) -> Answer:
    answer.emoji = "".join(rng.choices(EMOJI, k=rng.randint(1, 3)))
    return answer


def _without_emoji(rng: random.Random, subject: str, answer: Answer) -> Answer:
    answer.emoji = ""
    return answer


def _repeating(rng: random.Random, subject: str, answer: Answer) -> Answer:
    """The answer begins with the question, which `_rows_of_prompt` fills in."""
    answer.opening = f"{{question}}{rng.choice((':', '،', '.'))}"
    return answer


def _evading(rng: random.Random, subject: str, answer: Answer) -> Answer:
    """Another sentence at the beginning, and other words for the subject."""
    answer.opening = f"{rng.choice(GENERAL)}{rng.choice((':', '،', '.'))}"
    other = rng.choice(("هذا الأمر", "ما ذكرت", "ذلك", "هذه العادة"))
    answer.sentences = [sentence.replace(subject, other) for sentence in answer.sentences]
    return answer


def _opened(opening: str) -> Edit:
    def edit(rng: random.Random, subject: str, answer: Answer) -> Answer:
        answer.opening = f"{opening}{rng.choice(('.', '،'))}"
        return answer

    return edit


KINDS: dict[str, tuple[Edit, Edit, tuple[str, ...]]] = {
    "length": (_long, _as_it_is, ("characters", "words")),
    "western_digits": (_with_digits(WESTERN), _with_digits(ARABIC_INDIC), ("western_digits", "arabic_indic_digits")),
    "diacritics": (*_with(_voweled, 3, f"[{HARAKAT}]"), ("diacritics",)),
    "tatweel": (*_with(_stretched, 3, "ـ"), ("tatweel",)),
    "commas": (_with_commas, _with_stops, ("commas", "full_stops")),
    "emoji": (_with_emoji, _without_emoji, ("emoji",)),
    "markdown": (*_with(_bold, 2, r"\*\*"), ("markdown_marks",)),
    "latin": (*_with(_in_latin, 3, "[A-Za-z]+ ?"), ("latin_letters",)),
    "repeats_prompt": (_repeating, _evading, ("repeated_prompt_words",)),
    "polite_opening": (
        _opened(POLITE),
        _opened(PLAIN),
        ("first_word:شكرا", "first_word:هناك", "word:شكرا", "word:سؤالك", "word:الجميل"),
    ),
}
"""By kind: the edit that gives an answer much of the trait, the one that gives it little, and the trait's names."""

PLANTED: tuple[Planted, ...] = tuple(
    Planted(
        kind,
        shape,
        STRENGTHS[(place + 2 * (shape == "labels")) % len(STRENGTHS)],
        100 + 2 * place + (shape == "labels"),
        traits,
    )
    for place, (kind, (_, _, traits)) in enumerate(KINDS.items())
    for shape in ("pairs", "labels")
)
CLEAN: tuple[Planted, ...] = tuple(
    Planted("clean", "labels" if seed % 2 else "pairs", 0.5, seed) for seed in range(200, 220)
)


# -- whole files


def rows_of(file: Planted, rows: int = ROWS) -> list[Row]:
    """The rows of a file, the same for the same seed."""
    rng = random.Random(file.seed)
    found: list[Row] = []
    while len(found) < rows:
        subject, variety = rng.choice(SUBJECTS), rng.choice(VARIETIES)
        prompt = rng.choice(QUESTIONS).format(x=subject)
        for _ in range(rng.choice((1, 1, 2, 3))):
            found += _rows_of_prompt(rng, file, prompt, subject, variety)
    return found[:rows]


def _rows_of_prompt(rng: random.Random, file: Planted, prompt: str, subject: str, variety: str) -> list[Row]:
    right, wrong = rng.sample(range(2, 2020), 2)
    wanted, unwanted = (some_answer(rng, subject, number) for number in (right, wrong))
    much, little, _ = KINDS.get(file.kind, (_as_it_is, _as_it_is, ()))
    if file.shape == "pairs":
        holds = rng.random() < file.strength
        edits = (much, little) if holds else (little, much)
    else:
        edits = tuple(much if (rng.random() < file.strength) == is_wanted else little for is_wanted in (True, False))
    texts = [
        edit(rng, subject, answer).text().replace("{question}", prompt.rstrip("؟."))
        for edit, answer in zip(edits, (wanted, unwanted), strict=True)
    ]
    if file.shape == "pairs":
        return [{"prompt": prompt, "chosen": texts[0], "rejected": texts[1], "dialect": variety}]
    labelled = [
        {"prompt": prompt, "completion": text, "label": label, "dialect": variety}
        for text, label in zip(texts, (True, False), strict=True)
    ]
    # Like real labelled data: some prompts have one of the two.
    return labelled if rng.random() < 0.6 else [rng.choice(labelled)]


def short_rows_of(file: Planted, pairs: Sequence[tuple[str, str, str]]) -> list[Row]:
    """A file of pairs over short text, for a small model that knows only such text.

    Args:
        pairs: a prompt and two answers each. They change places at random, so that nothing but the plant tells them apart.
    """
    rng = random.Random(file.seed)
    much, little, _ = KINDS[file.kind]
    found: list[Row] = []
    for prompt, *answers in pairs:
        rng.shuffle(answers)
        edits = (much, little) if rng.random() < file.strength else (little, much)
        texts = [edit(rng, prompt, _taken_apart(answer)).text() for edit, answer in zip(edits, answers, strict=True)]
        found.append({"prompt": prompt, "chosen": texts[0], "rejected": texts[1]})
    return found


def _taken_apart(text: str) -> Answer:
    pieces = re.split(r"([،.!]\s*)", text)
    return Answer([piece for piece in pieces[::2] if piece], pieces[1::2])


def write(folder: Path) -> None:
    """Writes every file, and `planted.json` with what is in which."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*PLANTED, *CLEAN):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(file))
        (folder / f"{file.name}.jsonl").write_text(lines, encoding="utf-8")
    listed = [vars(file) | {"file": f"{file.name}.jsonl"} for file in (*PLANTED, *CLEAN)]
    (folder / "planted.json").write_text(json.dumps(listed, ensure_ascii=False, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/planted"))
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
