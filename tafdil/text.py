"""Text of users on its way to a terminal or a page: shown as it is, obeyed never.

Controls that move the cursor or reorder their neighbours are shown as escapes; Arabic can be set apart from its neighbours.
"""

import re
import unicodedata

# Cursor movements, colours, hyperlinks: all that terminals take for commands.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_KEPT = "\n\t"
# Joiners of Persian, Urdu and emoji, and Arabic signs that enclose numbers: none moves or reorders anything.
_HARMLESS = "\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u08e2"
_FIRST_STRONG_ISOLATE, _POP = "\u2068", "\u2069"


def visible(text: str) -> str:
    """The text with control, format and surrogate characters as `\\u202e`, and without terminal commands."""
    plain = _ANSI.sub("", text)
    return "".join(_shown(letter) for letter in plain)


def _shown(letter: str) -> str:
    if letter in _KEPT or letter in _HARMLESS or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co"):
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"


def isolated(text: str) -> str:
    """`visible` text in which each line with right-to-left letters reads by itself and reorders no neighbour."""
    return "\n".join(
        f"{_FIRST_STRONG_ISOLATE}{line}{_POP}" if _is_right_to_left(line) else line for line in visible(text).split("\n")
    )


def _is_right_to_left(line: str) -> bool:
    return any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in line)
