"""The column names and label values of common tables, in English and Arabic, normalized for comparison."""

import re
import unicodedata
from functools import lru_cache
from typing import Any

_SAME_LETTERS = str.maketrans("أإآٱىةؤئیک" + "٠١٢٣٤٥٦٧٨٩" + "۰۱۲۳۴۵۶۷۸۹", "ااااي" + "هويي" + "ك" + 2 * "0123456789", "ءـ")
_NO_WORD = re.compile(r"[^\w]+|_+")
_HYPHEN = re.compile(r"(?<=[^\W_])[-_](?=[^\W\d_])")
_SKIN_TONE = re.compile("[\U0001f3fb-\U0001f3ff\ufe0f]")


def plain(text: str) -> str:
    """A text without vowel marks, tatweel, hamza forms or case, so that similar spellings are equal."""
    letters = unicodedata.normalize("NFKD", text.casefold().translate(_SAME_LETTERS))
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).translate(_SAME_LETTERS).strip()


def name_words(column: str) -> tuple[str, ...]:
    """The words of a column's name, without the Arabic definite article."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", column)
    words = [word for word in _NO_WORD.split(plain(spaced)) if word]
    return tuple(word[2:] if word.startswith("ال") and len(word) > 3 else word for word in words)


def _table(words: str) -> frozenset[str]:
    return frozenset(plain(word.replace("_", " ")) for word in words.split())


GOOD = _table(
    "true yes y 1 1.0 good desirable positive like liked up thumbs_up thumbsup accept accepted chosen correct preferred "
    "👍 ✅ ✓ ✔ نعم صحيح صح جيد جيدة ممتاز حسن مقبول مقبولة مرغوب مفضل إيجابي موافق مناسب أعجبني"
)
BAD = _table(
    "false no n 0 0.0 bad undesirable negative dislike disliked down thumbs_down thumbsdown reject rejected incorrect wrong "
    "👎 ❌ ✗ ✘ لا خطأ خاطئ سيئ سيء سيئة رديء ضعيف مرفوض مرفوضة غير_مرغوب غير_مقبول غير_جيد غير_صحيح غير_مناسب سلبي لم_يعجبني"
)


def as_label(value: Any) -> bool | None:
    """A label as true (good) or false (bad); None for anything else."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    if not isinstance(value, str) or len(value) > 40:
        return None
    # Between words a hyphen is a blank; before a number it is a sign.
    word = plain(_HYPHEN.sub(" ", _SKIN_TONE.sub("", value)))
    return True if word in GOOD else False if word in BAD else None


def _names(*names: str) -> frozenset[tuple[str, ...]]:
    """Column names. Underscores join the words of a name."""
    return frozenset(name_words(name) for each in names for name in each.split())


def _words(words: str) -> frozenset[str]:
    return frozenset(word for name in _names(words) for word in name)


_ANSWER = _words("answer response output completion reply text الإجابة الجواب الرد الاستجابة المخرج الناتج نص")
_CHOSEN = _words(
    "chosen preferred accepted better best winner winning good مختار مختارة مفضل مفضلة مقبول مقبولة أفضل أحسن جيد جيدة "
    "فائز فائزة صحيح صحيحة"
)
_REJECTED = _words(
    "rejected dispreferred worse worst loser losing bad refused مرفوض مرفوضة أسوأ سيء سيئ سيئة خاطئ خاطئة مستبعد مستبعدة "
    "ضعيف ضعيفة خاسر خاسرة"
)
_NOT = _words("غير non not")
_FIELD_NAMES = {
    "prompt": _names(
        "prompt question instruction input query user_prompt user_question prompt_text السؤال نص_السؤال سؤال_المستخدم",
        "الموجه التوجيه المطالبة التعليمة التعليمات الطلب الاستفسار المدخل المدخلات",
    ),
    "completion": _names(
        "answer response output completion reply model_answer model_response model_output الإجابة الجواب الرد الاستجابة",
        "المخرج الناتج نص_الإجابة إجابة_النموذج رد_النموذج جواب_النموذج",
    ),
    "label": _names(
        "label feedback rating score thumbs vote verdict desirable kto_tag human_feedback is_good is_desirable is_chosen",
        "التقييم التقدير التصنيف الوسم الحكم الدرجة العلامة الملصق التصويت تقييم_الإجابة",
    ),
    "system": _names("system system_prompt system_message النظام رسالة_النظام تعليمات_النظام موجه_النظام"),
    "history": _names("history"),
    "confidence": _names("confidence الثقة"),
}


def is_answer(column: str) -> bool:
    """Whether a column's name says that it holds answers of any kind."""
    return not _ANSWER.isdisjoint(name_words(column))


@lru_cache(4096)
def field_of(column: str) -> str | None:
    """The field that a column's name stands for; None if there is none."""
    words = name_words(column)
    for field, names in _FIELD_NAMES.items():
        if words in names:
            return field
    is_not = bool(_NOT & set(words))
    rest = [word for word in words if word not in _NOT and word not in _ANSWER]
    if len(rest) != 1:
        return None
    if rest[0] in _CHOSEN:
        return "rejected" if is_not else "chosen"
    return "rejected" if rest[0] in _REJECTED and not is_not else None
