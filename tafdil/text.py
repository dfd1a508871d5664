"""Makes user text safe for a terminal or a page: it is shown, but never obeyed.

Controls that move the cursor or reorder other text are shown as escapes. Arabic can be isolated from the text around it.
"""

import re
import unicodedata

# Cursor movements, colours, hyperlinks: everything that terminals treat as commands.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_KEPT = "\n\t"
# Joiners in Persian, Urdu and emoji, and Arabic signs that enclose numbers: none moves or reorders text.
_HARMLESS = "\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u08e2"
_FIRST_STRONG_ISOLATE, _POP = "\u2068", "\u2069"


def visible(text: str) -> str:
    """The text without terminal commands, and with control, format and surrogate characters as escapes like `\\u202e`."""
    plain = _ANSI.sub("", text)
    return "".join(_shown(letter) for letter in plain)


def _shown(letter: str) -> str:
    if letter in _KEPT or letter in _HARMLESS or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co"):
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"


def isolated(text: str) -> str:
    """`visible` text in which each line with right-to-left letters is isolated, so that it reorders nothing around it."""
    return "\n".join(
        f"{_FIRST_STRONG_ISOLATE}{line}{_POP}" if _is_right_to_left(line) else line for line in visible(text).split("\n")
    )


def _is_right_to_left(line: str) -> bool:
    return any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in line)
