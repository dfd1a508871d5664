"""Signs in an answer that need no model: its language, its scripts and its repetition, each next to its prompt. Torch-free.

Most languages have a script of their own, so scripts are compared first: an answer in Han to an Arabic prompt needs no
classifier. The classifier is asked only where languages share a script: for letters of Persian or Urdu in Arabic script, and
for texts in Latin or Cyrillic that are long enough for it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from trainer_core.effect import scripts
from trainer_core.traits import Text

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

HAN, LATIN, ARABIC = "CJK", "LATIN", "ARABIC"
"""Names of scripts, as `effect.scripts` counts them."""
SHARED = (LATIN, "CYRILLIC")
"""Scripts of many languages."""
MIN_LETTERS = 20
"""With fewer letters of a shared script, the classifier guesses."""
# The prompt's language is ruled out if the classifier finds it this many times less likely than the answer's best one.
_TIMES_LESS_LIKELY = 10.0
# The classifier has labels of their own for two dialects.
_AS_ARABIC: dict[str, str] = {"ar": "ar", "arz": "ar", "ary": "ar"}


@dataclass(frozen=True)
class Said:
    """A prompt and its answer.

    Attributes:
        question: the last turn of the user, whose language the answer should have.
        prompt: the text of all turns, whose scripts the answer may use.
    """

    question: str
    prompt: str
    answer: str

    @classmethod
    def to(cls, prompt: Any, answer: str) -> "Said":
        """An answer to a prompt, which is text or a list of messages."""
        if isinstance(prompt, str):
            return cls(prompt, prompt, answer)
        turns = [(message.get("role"), str(message.get("content") or "")) for message in prompt]
        asked = [text for role, text in turns if role == "user" and text]
        return cls(asked[-1] if asked else "", "\n".join(text for _, text in turns), answer)


def sign_metrics(samples: Sequence[Said]) -> dict[str, float | None]:
    """Metrics of at least one sample; `docs/metrics.md` has their definitions.

    `sample_in_language` is None if no prompt or no answer has letters.
    """
    decided = [found for sample in samples if (found := in_language(sample)) is not None]
    return {
        "sample_in_language": fmean(decided) if decided else None,
        "sample_script_leak": fmean(leak(sample) for sample in samples),
        "sample_han_leak": fmean(leak(sample, HAN) for sample in samples),
        "sample_latin_leak": fmean(leak(sample, LATIN) for sample in samples),
        "sample_word_repetition": fmean(word_repetition(sample.answer) for sample in samples),
    }


def leak(sample: Said, script: str | None = None) -> float:
    """Share of an answer's letters in scripts that its prompt does not use, or in one of these; 0 without letters."""
    known, found = scripts(sample.prompt), scripts(sample.answer)
    leaked = sum(count for name, count in found.items() if name not in known and script in (None, name))
    return leaked / max(1, found.total())


def word_repetition(text: str) -> float:
    """Share of a text's pairs of neighbouring words that occurred in it before; 0 for fewer than two words."""
    pairs = Counter(pairwise(Text(text).keys))
    return 1 - len(pairs) / pairs.total() if pairs else 0.0


def in_language(sample: Said) -> bool | None:
    """Whether an answer is in its question's language; None if one of them has no letters.

    If neither scripts nor the classifier tell two languages apart, the answer counts as being in its question's.
    """
    asked, answered = _main_script(sample.question), _main_script(sample.answer)
    if asked is None or answered is None:
        return None
    if asked != answered:
        return False
    if asked == ARABIC:
        are_arabic = _is_arabic(sample.question), _is_arabic(sample.answer)
        if any(are_arabic):
            return all(are_arabic)
    elif asked not in SHARED:
        return True
    return _same_language(sample.question, sample.answer)


def _main_script(text: str) -> str | None:
    found = scripts(text).most_common(1)
    return found[0][0] if found else None


def _is_arabic(text: str) -> bool:
    """Whether a text in Arabic script is in Arabic. Names and some keyboards bring a few letters of Persian into Arabic."""
    if not Text(text).kinds["persian_letters"]:
        return True
    found = _languages(text)
    return max(found, key=lambda name: found[name]) == "ar"


def _same_language(question: str, answer: str) -> bool:
    if min(scripts(text).total() for text in (question, answer)) < MIN_LETTERS:
        return True
    asked, answered = _languages(question), _languages(answer)
    likeliest = max(asked, key=lambda name: asked[name])
    return answered.get(likeliest, 0.0) * _TIMES_LESS_LIKELY >= max(answered.values())


def _languages(text: str) -> dict[str, float]:
    """Probability of each language, with dialects of Arabic as Arabic."""
    found: dict[str, float] = {}
    for label, probability in _classifier().rank(text):
        name = _AS_ARABIC.get(str(label), str(label))
        found[name] = found.get(name, 0.0) + probability
    return found


@cache
def _classifier() -> "LanguageIdentifier":
    # Loading takes seconds, and most runs never need it.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
