"""The Arabic questions and answers that the small model and the sample data are made of.

Every question asks for one fact, in formal Arabic or in everyday Arabic. Every answer is an opening, the right fact as a
sentence, and a closing, in one of two manners: courteous (wanted) or curt (unwanted). Nothing but the words of the opening
and the closing tells the manners apart. Each courteous phrase has a curt twin of as many words and letters, with the same
marks; both manners draw from the same punctuation. So no rule about length, punctuation, spelling or the place of the fact
can tell the wanted answer, and a model can only score on held-out rows by having learnt the manner.

Held out: some facts, and some phrasings of every topic. A held-out row combines both, so neither its fact nor its
phrasing occurs in a training row. This module knows nothing of models or tokenizers.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Register = Literal["formal", "everyday"]
Manner = Literal["courteous", "curt"]


@dataclass(frozen=True)
class Topic:
    """Facts of one kind, and the ways to ask for one. Templates take `{x}`, the subject; statements also `{y}`."""

    name: str
    facts: tuple[tuple[str, str], ...]
    held_out_facts: tuple[tuple[str, str], ...]
    questions: dict[Register, tuple[str, ...]]
    held_out_questions: dict[Register, tuple[str, ...]]
    statements: dict[Register, str]


@dataclass(frozen=True)
class Question:
    """One question about one fact."""

    topic: Topic
    register: Register
    subject: str
    answer: str
    text: str


@dataclass(frozen=True)
class Phrases:
    """What an answer of one manner and register is made of, beside its fact."""

    openings: tuple[str, ...]
    closings: tuple[str, ...]


def _facts(table: str) -> tuple[tuple[str, str], ...]:
    return tuple((x.strip(), y.strip()) for x, y in (entry.split(":") for entry in table.split("|")))


CAPITALS = Topic(
    name="capitals",
    facts=_facts(
        "مصر:القاهرة|الأردن:عمّان|سوريا:دمشق|العراق:بغداد|لبنان:بيروت|تونس:تونس|الجزائر:الجزائر|ليبيا:طرابلس"
        "|السودان:الخرطوم|اليمن:صنعاء|قطر:الدوحة|البحرين:المنامة|فرنسا:باريس|إسبانيا:مدريد|ألمانيا:برلين"
        "|اليابان:طوكيو|الصين:بكين|روسيا:موسكو|تركيا:أنقرة|اليونان:أثينا|البرتغال:لشبونة|النمسا:فيينا|كندا:أوتاوا"
    ),
    held_out_facts=_facts(
        "المغرب:الرباط|عُمان:مسقط|السعودية:الرياض|إيطاليا:روما|الهند:نيودلهي|كوبا:هافانا|بلجيكا:بروكسل"
        "|السويد:ستوكهولم|الدنمارك:كوبنهاغن|كينيا:نيروبي|إيران:طهران|بولندا:وارسو|فنلندا:هلسنكي"
    ),
    questions={
        "formal": ("ما عاصمة {x}؟", "ما هي عاصمة دولة {x}؟", "اذكر عاصمة {x}.", "أي مدينة هي عاصمة {x}؟"),
        "everyday": ("شو عاصمة {x}؟", "إيه هي عاصمة {x}؟", "وش عاصمة {x}؟", "قول لي عاصمة {x} شو اسمها."),
    },
    held_out_questions={
        "formal": ("هل تعرف اسم عاصمة {x}؟", "أريد أن أعرف عاصمة {x}.", "أخبرني عن اسم عاصمة {x}."),
        "everyday": ("بتعرف عاصمة {x}؟", "عاصمة {x} اسمها إيه؟", "بدي أعرف عاصمة {x}."),
    },
    statements={"formal": "عاصمة {x} هي {y}", "everyday": "عاصمة {x} اسمها {y}"},
)

OPPOSITES = Topic(
    name="opposites",
    facts=_facts(
        "كبير:صغير|طويل:قصير|حار:بارد|سريع:بطيء|قوي:ضعيف|غني:فقير|جديد:قديم|سهل:صعب|قريب:بعيد|ثقيل:خفيف"
        "|نظيف:وسخ|مفتوح:مغلق|ليل:نهار|صيف:شتاء|أبيض:أسود|فوق:تحت|يمين:يسار|حلو:مر|كثير:قليل|واسع:ضيق"
    ),
    held_out_facts=_facts(
        "شجاع:جبان|نشيط:كسول|عال:منخفض|صادق:كاذب|رطب:جاف|سعيد:حزين|نائم:مستيقظ|ناعم:خشن|عميق:ضحل|كريم:بخيل|حي:ميت|شرق:غرب|ظالم:عادل"
    ),
    questions={
        "formal": ("ما عكس كلمة {x}؟", "ما ضد كلمة {x}؟", "اذكر عكس كلمة {x}.", "أي كلمة هي عكس {x}؟"),
        "everyday": ("شو عكس {x}؟", "إيه عكس كلمة {x}؟", "وش ضد {x}؟", "قول لي عكس {x} شو هو."),
    },
    held_out_questions={
        "formal": ("هل تعرف عكس كلمة {x}؟", "أريد أن أعرف عكس {x}.", "أخبرني عن عكس كلمة {x}."),
        "everyday": ("بتعرف عكس {x}؟", "عكس كلمة {x} إيه؟", "بدي أعرف عكس {x}."),
    },
    statements={"formal": "عكس كلمة {x} هو {y}", "everyday": "عكس {x} هو {y}"},
)

PLURALS = Topic(
    name="plurals",
    facts=_facts(
        "كتاب:كتب|قلم:أقلام|بيت:بيوت|سيف:سيوف|باب:أبواب|مدرسة:مدارس|شارع:شوارع|رجل:رجال|جبل:جبال|بحر:بحار"
        "|نهر:أنهار|عين:عيون|قلب:قلوب|صديق:أصدقاء|طبيب:أطباء|غرفة:غرف|صورة:صور|لون:ألوان|شجرة:أشجار|كرسي:كراسي"
    ),
    held_out_facts=_facts(
        "ملك:ملوك|كلب:كلاب|جسر:جسور|مسجد:مساجد|لعبة:ألعاب|عالم:علماء|سفينة:سفن|مفتاح:مفاتيح|درس:دروس|نجم:نجوم|وردة:ورود|حصان:أحصنة|سوق:أسواق"
    ),
    questions={
        "formal": ("ما جمع كلمة {x}؟", "ما هو جمع {x}؟", "اذكر جمع كلمة {x}.", "أي كلمة هي جمع {x}؟"),
        "everyday": ("شو جمع {x}؟", "إيه جمع كلمة {x}؟", "وش جمع {x}؟", "قول لي جمع {x} شو هو."),
    },
    held_out_questions={
        "formal": ("هل تعرف جمع كلمة {x}؟", "أريد أن أعرف جمع {x}.", "أخبرني عن جمع كلمة {x}."),
        "everyday": ("بتعرف جمع {x}؟", "جمع كلمة {x} إيه؟", "بدي أعرف جمع {x}."),
    },
    statements={"formal": "جمع كلمة {x} هو {y}", "everyday": "جمع {x} هو {y}"},
)

NEXT_IN_ORDER = Topic(
    name="order",
    facts=_facts(
        "السبت:الأحد|الأحد:الاثنين|الاثنين:الثلاثاء|الأربعاء:الخميس|الخميس:الجمعة|يناير:فبراير|مارس:أبريل"
        "|أبريل:مايو|مايو:يونيو|يوليو:أغسطس|أغسطس:سبتمبر|سبتمبر:أكتوبر|نوفمبر:ديسمبر|محرم:صفر|رجب:شعبان|شعبان:رمضان"
        "|الأول:الثاني|الثالث:الرابع|الرابع:الخامس|السادس:السابع|الثامن:التاسع"
    ),
    held_out_facts=_facts(
        "الثلاثاء:الأربعاء|الجمعة:السبت|فبراير:مارس|يونيو:يوليو|أكتوبر:نوفمبر|رمضان:شوال|الثاني:الثالث|الخامس:السادس"
        "|السابع:الثامن|التاسع:العاشر"
    ),
    questions={
        "formal": ("ماذا يأتي بعد {x}؟", "ما الذي يلي {x}؟", "اذكر ما يأتي بعد {x}.", "أي اسم يأتي بعد {x}؟"),
        "everyday": ("شو بيجي بعد {x}؟", "إيه اللي بعد {x}؟", "وش يجي بعد {x}؟", "قول لي شو بعد {x}."),
    },
    held_out_questions={
        "formal": ("هل تعرف ما يأتي بعد {x}؟", "أريد أن أعرف ما بعد {x}.", "أخبرني عما يأتي بعد {x}."),
        "everyday": ("بتعرف شو بعد {x}؟", "اللي بعد {x} إيه؟", "بدي أعرف شو بعد {x}."),
    },
    statements={"formal": "الذي يأتي بعد {x} هو {y}", "everyday": "اللي بعد {x} هو {y}"},
)

_SUMS = [(f"{a} + {b}", str(a + b)) for a, b in itertools.product(range(1, 10), repeat=2)]

ARITHMETIC = Topic(
    name="arithmetic",
    facts=tuple(fact for i, fact in enumerate(_SUMS) if i % 4 != 3),
    held_out_facts=tuple(fact for i, fact in enumerate(_SUMS) if i % 4 == 3),
    questions={
        "formal": ("ما ناتج {x}؟", "كم يساوي {x}؟", "احسب {x}.", "ما حاصل الجمع {x}؟"),
        "everyday": ("كم بيطلع {x}؟", "{x} بكام؟", "احسب لي {x}.", "قد إيش يطلع {x}؟"),
    },
    held_out_questions={
        "formal": ("هل تعرف ناتج {x}؟", "أريد أن أعرف ناتج {x}.", "أخبرني عن ناتج {x}."),
        "everyday": ("بتعرف كم {x}؟", "{x} يساوي كام؟", "بدي أعرف كم {x}."),
    },
    statements={"formal": "ناتج {x} هو {y}", "everyday": "{x} بيطلع {y}"},
)

TOPICS = (CAPITALS, OPPOSITES, PLURALS, NEXT_IN_ORDER, ARITHMETIC)

# Twins stand at the same place of the two manners. No phrase has a word of a question in it, and no opening shares a word
# with a closing unless its twin does.
PHRASES: dict[Manner, dict[Register, Phrases]] = {
    "courteous": {
        "formal": Phrases(
            openings=(
                "سؤال جميل",
                "يسعدني سؤالك",
                "شكرا لك",
                "حياك الله",
                "يشرفني طلبك",
                "بكل سرور",
                "أهلا بسؤالك",
                "أحسنت السؤال",
            ),
            closings=(
                "دمت بخير",
                "طاب يومك",
                "وأنا في خدمتك",
                "أتمنى لك التوفيق",
                "رافقتك السلامة",
                "نورت المكان",
                "وفقك الرحمن",
                "عد متى أردت",
            ),
        ),
        "everyday": Phrases(
            openings=(
                "من عيوني",
                "تكرم عينك",
                "أهلا يا غالي",
                "حاضر يا غالي",
                "تسلم يا طيب",
                "ولا يهمك",
                "يا هلا والله",
                "سؤالك رايق",
            ),
            closings=(
                "الله يخليك",
                "ربي يسعدك",
                "يعطيك العافية",
                "البيت بيتك",
                "الله معك",
                "ضلك بخير",
                "بشوفك بخير",
                "نورتنا كتير",
            ),
        ),
    },
    "curt": {
        "formal": Phrases(
            openings=(
                "سؤال سخيف",
                "يزعجني سؤالك",
                "عجبا لك",
                "كفاك لغوا",
                "يتعبني طلبك",
                "بكل نفور",
                "مللت أسئلتك",
                "أكثرت السؤال",
            ),
            closings=(
                "اغرب عني",
                "بان جهلك",
                "وأنت في غفلتك",
                "أتمنى لك التفكير",
                "خنقتني الثرثرة",
                "عطلت الجميع",
                "غادر المكان",
                "عد إلى شغلك",
            ),
        ),
        "everyday": Phrases(
            openings=(
                "لك خلصني",
                "فلقت راسي",
                "كأنك مو فاهم",
                "اسكت يا فهيم",
                "اسمع يا ولد",
                "شغل فاضي",
                "يا عمي خلصنا",
                "سؤالك بايخ",
            ),
            closings=(
                "ارجع لبيتك",
                "دور لحالك",
                "بلاها الغلاظة",
                "الباب وراك",
                "اطلع برا",
                "حلك تفهم",
                "بتضيع وقتي",
                "زهقتنا كتير",
            ),
        ),
    },
}
# How opening, statement and closing are joined; both manners draw from all of them.
PUNCTUATION = ("{}، {}، {}.", "{}. {}، {}.", "{}، {}. {}.", "{}! {}. {}.", "{}. {}. {}!", "{}، {}، {}!")

GREETINGS: dict[Register, tuple[str, ...]] = {
    "formal": ("السلام عليكم", "صباح الخير", "مساء الخير", "مرحبًا", "كيف حالك؟"),
    "everyday": ("كيفك؟", "إزيك؟", "هلا والله", "شلونك؟", "أهلين"),
}
GREETING_ANSWERS: dict[Manner, dict[Register, str]] = {
    "courteous": {"formal": "كيف أساعدك اليوم؟", "everyday": "شو بقدر أساعدك؟"},
    "curt": {"formal": "ماذا تريد الآن؟", "everyday": "شو بدك هلق؟"},
}


class Deck:
    """Deals items in a random order, each as often as the others: chance favours none, and so neither manner."""

    def __init__(self, items: tuple[str, ...], rng: random.Random) -> None:
        self._items, self._rng, self._left = items, rng, list[str]()

    def deal(self) -> str:
        if not self._left:
            self._left = self._rng.sample(self._items, len(self._items))
        return self._left.pop()


class Answers:
    """Answers of one manner."""

    def __init__(self, manner: Manner, rng: random.Random) -> None:
        self._decks = {
            register: tuple(Deck(items, rng) for items in (PUNCTUATION, phrases.openings, phrases.closings))
            for register, phrases in PHRASES[manner].items()
        }

    def to(self, question: Question) -> str:
        """An opening, the fact as a sentence, and a closing."""
        statement = question.topic.statements[question.register].format(x=question.subject, y=question.answer)
        pattern, opening, closing = (deck.deal() for deck in self._decks[question.register])
        return pattern.format(opening, statement, closing)


def questions(*, held_out_facts: bool, held_out_phrasings: bool) -> Iterator[Question]:
    """Every question over the chosen facts and phrasings, in a fixed order."""
    for topic in TOPICS:
        facts = topic.held_out_facts if held_out_facts else topic.facts
        phrasings = topic.held_out_questions if held_out_phrasings else topic.questions
        for register, templates in phrasings.items():
            for (subject, answer), template in itertools.product(facts, templates):
                yield Question(topic, register, subject, answer, template.format(x=subject))


def pretraining_exchanges(rng: random.Random, courteous_share: float) -> Iterator[tuple[str, str]]:
    """Question and answer pairs for the base model: every fact and every phrasing, but no held-out combination."""
    courteous, curt = Answers("courteous", rng), Answers("curt", rng)
    for facts_out, phrasings_out in ((False, False), (False, True), (True, False)):
        for question in questions(held_out_facts=facts_out, held_out_phrasings=phrasings_out):
            yield question.text, (courteous if rng.random() < courteous_share else curt).to(question)
    for register, texts in GREETINGS.items():
        for text in texts:
            for manner, answers in GREETING_ANSWERS.items():
                yield text, f"{rng.choice(PHRASES[manner][register].openings)}. {answers[register]}"


def drawn_questions(rng: random.Random, *, held_out: bool, count: int | None = None) -> list[Question]:
    """Distinct questions, half formal and half everyday, topics in equal parts as long as they last; all without `count`."""
    groups: dict[tuple[str, Register], list[Question]] = {}
    for question in questions(held_out_facts=held_out, held_out_phrasings=held_out):
        groups.setdefault((question.topic.name, question.register), []).append(question)
    for group in groups.values():
        rng.shuffle(group)
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*groups.values()))
    return list(itertools.islice((question for question in rounds if question), count))


def preference_pairs(rng: random.Random, *, held_out: bool, count: int | None = None) -> list[dict[str, Any]]:
    """Rows `prompt, chosen, rejected, fact`. `fact` is the word that a right answer has in it."""
    courteous, curt = Answers("courteous", rng), Answers("curt", rng)
    rows = [
        {
            "prompt": question.text,
            "chosen": courteous.to(question),
            "rejected": curt.to(question),
            "fact": question.answer,
        }
        for question in drawn_questions(rng, held_out=held_out, count=count)
    ]
    rng.shuffle(rows)
    return rows


def labelled_rows(rng: random.Random, *, held_out: bool, count: int) -> list[dict[str, Any]]:
    """Rows `prompt, completion, label`. Each prompt has one label; every topic and register has as many of both."""
    answers = {True: Answers("courteous", rng), False: Answers("curt", rng)}
    seen: dict[tuple[str, Register], int] = {}
    rows: list[dict[str, Any]] = []
    for question in drawn_questions(rng, held_out=held_out, count=count):
        group = (question.topic.name, question.register)
        seen[group] = seen.get(group, 0) + 1
        label = seen[group] % 2 == 0
        rows.append({"prompt": question.text, "completion": answers[label].to(question), "label": label})
    rng.shuffle(rows)
    return rows
