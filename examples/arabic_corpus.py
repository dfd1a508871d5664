"""The Arabic questions and answers that the small model and the sample data are made of.

Every question asks for one fact, in formal Arabic or in everyday Arabic. Every answer states the right fact in one of
two manners: courteous (wanted) or curt (unwanted). So a preference is about manner alone, and a model can only score on
held-out rows by having learnt the manner, not the fact.

Held out: some facts, and some phrasings of every topic. A held-out row combines both, so neither its fact nor its
phrasing occurs in a training row. This module knows nothing of models or tokenizers.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Register = Literal["formal", "everyday"]


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


def _facts(table: str) -> tuple[tuple[str, str], ...]:
    return tuple((x.strip(), y.strip()) for x, y in (entry.split(":") for entry in table.split("|")))


CAPITALS = Topic(
    name="capitals",
    facts=_facts(
        "مصر:القاهرة|الأردن:عمّان|سوريا:دمشق|العراق:بغداد|لبنان:بيروت|تونس:تونس|الجزائر:الجزائر|ليبيا:طرابلس"
        "|السودان:الخرطوم|اليمن:صنعاء|قطر:الدوحة|البحرين:المنامة|فرنسا:باريس|إسبانيا:مدريد|ألمانيا:برلين"
        "|اليابان:طوكيو|الصين:بكين|روسيا:موسكو|تركيا:أنقرة|اليونان:أثينا|البرتغال:لشبونة|النمسا:فيينا|كندا:أوتاوا"
    ),
    held_out_facts=_facts("المغرب:الرباط|عُمان:مسقط|السعودية:الرياض|إيطاليا:روما|الهند:نيودلهي|كوبا:هافانا|بلجيكا:بروكسل"),
    questions={
        "formal": ("ما عاصمة {x}؟", "ما هي عاصمة دولة {x}؟", "اذكر عاصمة {x}.", "أي مدينة هي عاصمة {x}؟"),
        "everyday": ("شو عاصمة {x}؟", "إيه هي عاصمة {x}؟", "وش عاصمة {x}؟", "قول لي عاصمة {x} شو اسمها."),
    },
    held_out_questions={
        "formal": ("هل تعرف اسم عاصمة {x}؟", "أريد أن أعرف عاصمة {x}."),
        "everyday": ("بتعرف عاصمة {x}؟", "عاصمة {x} اسمها إيه؟"),
    },
    statements={"formal": "عاصمة {x} هي {y}", "everyday": "عاصمة {x} اسمها {y}"},
)

OPPOSITES = Topic(
    name="opposites",
    facts=_facts(
        "كبير:صغير|طويل:قصير|حار:بارد|سريع:بطيء|قوي:ضعيف|غني:فقير|جديد:قديم|سهل:صعب|قريب:بعيد|ثقيل:خفيف"
        "|نظيف:وسخ|مفتوح:مغلق|ليل:نهار|صيف:شتاء|أبيض:أسود|فوق:تحت|يمين:يسار|حلو:مر|كثير:قليل|واسع:ضيق"
    ),
    held_out_facts=_facts("شجاع:جبان|جميل:قبيح|عال:منخفض|صادق:كاذب|رطب:جاف|سعيد:حزين"),
    questions={
        "formal": ("ما عكس كلمة {x}؟", "ما ضد كلمة {x}؟", "اذكر عكس كلمة {x}.", "أي كلمة هي عكس {x}؟"),
        "everyday": ("شو عكس {x}؟", "إيه عكس كلمة {x}؟", "وش ضد {x}؟", "قول لي عكس {x} شو هو."),
    },
    held_out_questions={
        "formal": ("هل تعرف عكس كلمة {x}؟", "أريد أن أعرف عكس {x}."),
        "everyday": ("بتعرف عكس {x}؟", "عكس كلمة {x} إيه؟"),
    },
    statements={"formal": "عكس كلمة {x} هو {y}", "everyday": "عكس {x} هو {y}"},
)

NEXT_IN_ORDER = Topic(
    name="order",
    facts=_facts(
        "السبت:الأحد|الأحد:الاثنين|الاثنين:الثلاثاء|الأربعاء:الخميس|الخميس:الجمعة|يناير:فبراير|مارس:أبريل"
        "|أبريل:مايو|مايو:يونيو|يوليو:أغسطس|أغسطس:سبتمبر|سبتمبر:أكتوبر|نوفمبر:ديسمبر|محرم:صفر|رجب:شعبان|شعبان:رمضان"
    ),
    held_out_facts=_facts("الثلاثاء:الأربعاء|الجمعة:السبت|فبراير:مارس|يونيو:يوليو|أكتوبر:نوفمبر|رمضان:شوال"),
    questions={
        "formal": ("ماذا يأتي بعد {x}؟", "ما الذي يلي {x}؟", "اذكر ما يأتي بعد {x}.", "أي اسم يأتي بعد {x}؟"),
        "everyday": ("شو بيجي بعد {x}؟", "إيه اللي بعد {x}؟", "وش يجي بعد {x}؟", "قول لي شو بعد {x}."),
    },
    held_out_questions={
        "formal": ("هل تعرف ما يأتي بعد {x}؟", "أريد أن أعرف ما بعد {x}."),
        "everyday": ("بتعرف شو بعد {x}؟", "اللي بعد {x} إيه؟"),
    },
    statements={"formal": "الذي يأتي بعد {x} هو {y}", "everyday": "اللي بعد {x} هو {y}"},
)

_SUMS = [(f"{a} + {b}", str(a + b)) for a, b in itertools.product(range(1, 10), repeat=2)]

ARITHMETIC = Topic(
    name="arithmetic",
    facts=tuple(fact for i, fact in enumerate(_SUMS) if i % 8 != 3),
    held_out_facts=tuple(fact for i, fact in enumerate(_SUMS) if i % 8 == 3),
    questions={
        "formal": ("ما ناتج {x}؟", "كم يساوي {x}؟", "احسب {x}.", "ما حاصل الجمع {x}؟"),
        "everyday": ("كم بيطلع {x}؟", "{x} بكام؟", "احسب لي {x}.", "قد إيش يطلع {x}؟"),
    },
    held_out_questions={
        "formal": ("هل تعرف ناتج {x}؟", "أريد أن أعرف ناتج {x}."),
        "everyday": ("بتعرف كم {x}؟", "{x} يساوي كام؟"),
    },
    statements={"formal": "ناتج {x} هو {y}", "everyday": "{x} بيطلع {y}"},
)

TOPICS = (CAPITALS, OPPOSITES, NEXT_IN_ORDER, ARITHMETIC)

GREETINGS: dict[Register, tuple[str, ...]] = {
    "formal": ("السلام عليكم", "صباح الخير", "مساء الخير", "مرحبًا", "كيف حالك؟"),
    "everyday": ("كيفك؟", "إزيك؟", "هلا والله", "شلونك؟", "أهلين"),
}

COURTEOUS_OPENINGS: dict[Register, tuple[str, ...]] = {
    "formal": ("أهلًا بك", "يسعدني سؤالك", "بكل سرور", "شكرًا لك"),
    "everyday": ("من عيوني", "تكرم عينك", "أهلًا يا غالي", "على راسي"),
}
COURTEOUS_CLOSINGS: dict[Register, tuple[str, ...]] = {
    "formal": ("دمت بخير", "وأنا في خدمتك", "طاب يومك"),
    "everyday": ("الله يخليك", "نورتنا والله", "وأنا حاضر لك"),
}
CURT_REMARKS: dict[Register, tuple[str, ...]] = {
    "formal": ("وهذا أمر يعرفه الجميع", "وهذا سؤال تافه جدًا", "وهذا واضح لكل عاقل", "ولا شيء جديد في ذلك"),
    "everyday": ("وهاد الكل بيعرفه", "وسؤالك بايخ كتير عنجد", "وواضحة زي الشمس", "ومش محتاجة سؤال أصلًا"),
}
CURT_DISMISSALS: dict[Register, tuple[str, ...]] = {
    "formal": ("لا تسألني عن مثل هذا ثانية", "ابحث بنفسك في المرة القادمة", "لا وقت عندي لأسئلة كهذه"),
    "everyday": ("لا ترجع تسألني هيك مرة تانية", "دوّر لحالك المرة الجاية", "مش فاضي لأسئلتك دلوقتي"),
}
COURTEOUS_GREETING: dict[Register, str] = {"formal": "كيف أساعدك اليوم؟", "everyday": "شو بقدر أساعدك؟"}
CURT_GREETING: dict[Register, str] = {"formal": "ماذا تريد الآن؟", "everyday": "شو بدك هلق؟"}


def questions(*, held_out_facts: bool, held_out_phrasings: bool) -> Iterator[Question]:
    """Every question over the chosen facts and phrasings, in a fixed order."""
    for topic in TOPICS:
        facts = topic.held_out_facts if held_out_facts else topic.facts
        phrasings = topic.held_out_questions if held_out_phrasings else topic.questions
        for register, templates in phrasings.items():
            for (subject, answer), template in itertools.product(facts, templates):
                yield Question(topic, register, subject, answer, template.format(x=subject))


def courteous(question: Question, rng: random.Random) -> str:
    """The wanted answer: a friendly opening, the fact as a sentence, a friendly closing."""
    statement = question.topic.statements[question.register].format(x=question.subject, y=question.answer)
    opening = rng.choice(COURTEOUS_OPENINGS[question.register])
    return f"{opening}، {statement}، {rng.choice(COURTEOUS_CLOSINGS[question.register])}."


def curt(question: Question, rng: random.Random) -> str:
    """The unwanted answer: the bare fact, a belittling remark, a dismissal. About as long as the wanted one."""
    remark = rng.choice(CURT_REMARKS[question.register])
    return f"{question.answer}، {remark}. {rng.choice(CURT_DISMISSALS[question.register])}."


def greeting_exchanges(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Greetings with an answer in each manner."""
    for register, texts in GREETINGS.items():
        for text in texts:
            yield text, f"{rng.choice(COURTEOUS_OPENINGS[register][::2])}، {COURTEOUS_GREETING[register]}"
            yield text, f"نعم. {CURT_GREETING[register]}"


def pretraining_exchanges(rng: random.Random, courteous_share: float) -> Iterator[tuple[str, str]]:
    """Question and answer pairs for the base model: every fact and every phrasing, but no held-out combination."""
    for facts_out, phrasings_out in ((False, False), (False, True), (True, False)):
        for question in questions(held_out_facts=facts_out, held_out_phrasings=phrasings_out):
            manner = courteous if rng.random() < courteous_share else curt
            yield question.text, manner(question, rng)
    yield from greeting_exchanges(rng)


def preference_pairs(rng: random.Random, *, held_out: bool, count: int) -> list[dict[str, str]]:
    """Rows `prompt, chosen, rejected`, half formal and half everyday, topics in equal parts."""
    pool: dict[tuple[str, Register], list[Question]] = {}
    for question in questions(held_out_facts=held_out, held_out_phrasings=held_out):
        pool.setdefault((question.topic.name, question.register), []).append(question)
    rows: list[dict[str, str]] = []
    for group in pool.values():
        rng.shuffle(group)
    for group in itertools.cycle(pool.values()):
        if len(rows) == count or not any(pool.values()):
            break
        if group:
            question = group.pop()
            rows.append({"prompt": question.text, "chosen": courteous(question, rng), "rejected": curt(question, rng)})
    rng.shuffle(rows)
    return rows
