"""The language of a text: by its script where that decides, otherwise by py3langid, whose model is in its package.

The classifier guesses short texts: "Paris" belongs to no one language, and "No" to several.
"""

from functools import cache
from typing import Any

from trainer_core.effect import scripts
from trainer_core.sample_signs import ARABIC, MIN_LETTERS, SHARED
from trainer_core.traits import Text

_ARABIC = {"ar", "arz", "ary", "aeb", "apc"}
"""Arabic and its varieties, which count as one language here."""
_DECIDING = 0.7
_READ_CHARACTERS = 300


def language_of(text: Text) -> str:
    """A code such as `ar`, `en` or `fa`; `none` for a text without letters, `unknown` for too few in a shared script."""
    kinds = text.kinds
    letters = sum(map(str.isalpha, text.text))
    if not letters:
        return "none"
    if kinds["arabic_letters"] >= _DECIDING * letters and not kinds["persian_letters"]:
        return "ar"
    ((script, _),) = scripts(text.text).most_common(1)
    if script in (ARABIC, *SHARED) and letters < MIN_LETTERS:
        return "unknown"
    found = str(_identifier().classify(text.text[:_READ_CHARACTERS])[0])
    return "ar" if found in _ARABIC else found


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
