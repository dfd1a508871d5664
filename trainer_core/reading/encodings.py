"""The encoding of a text: UTF-8 or UTF-16, detected from its bytes, or a guess that a person confirms."""

import codecs
import encodings.aliases
import re
from collections.abc import Callable
from dataclasses import dataclass

from trainer_core.errors import DataUnclear, Detail, Question
from trainer_core.reading.values import RowFault
from trainer_core.wording import Message, say

# The encodings that spreadsheets and editors write, the Arabic ones first.
_CODE_PAGES = (
    *("cp1256", "iso8859_6", "cp720", "cp864", "mac_arabic", "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255"),
    *("cp1257", "koi8_r", "gb18030", "big5", "cp932", "euc_jp", "cp949"),
)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ARABIC = re.compile("[\u0600-\u06ff]")
_SAMPLE_BYTES = 2**14


UNDECODABLE = b"\xff"
"""What stands for each byte that the named encoding does not have. UTF-8 never contains it."""
codecs.register_error("tafdil_undecodable", lambda error: ("\udcff", getattr(error, "end", 0)))


class UnknownEncoding(ValueError):
    """An encoding that does not exist, or that the file cannot have; `reason` says which."""

    def __init__(self, reason: Message) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Unknown:
    """A text whose encoding is unknown, with the likely ones, best guess first; none without the package that guesses."""

    choices: tuple[str, ...]


def encoding_of(head: bytes, is_all: bool, named: str | None) -> str | Unknown | None:
    """The encoding of a text that begins with `head`; None for UTF-8.

    Raises:
        UnknownEncoding: there is no encoding called `named`, or the bytes have another.
    """
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    found = marked or _utf16_without_mark(head)
    page = _checked(named) if named else None
    if not found and page and is_utf8_of_letters(head, is_all):
        found = "utf-8"
    if found and page and not _is_same(found, page):
        raise UnknownEncoding(say("already_unicode", encoding=found.upper()))
    if not found and not page:
        if not _is_rather_utf8(head):
            return _guessed(head[:_SAMPLE_BYTES])
        found = "utf-8"
    chosen = found or page
    return None if chosen == "utf-8" else chosen


def _is_same(found: str, page: str) -> bool:
    """Whether a named encoding is the one that the bytes have, whatever byte order is named."""
    return page.replace("_", "-")[:6] == found[:6]


def is_utf8_of_letters(data: bytes, is_all: bool) -> bool:
    """Whether bytes are UTF-8 and have at least one complete character that is not ASCII."""
    try:
        return not codecs.getincrementaldecoder("utf-8")().decode(data, is_all).isascii()
    except UnicodeDecodeError:
        return False


def decoder(name: str) -> codecs.IncrementalDecoder:
    """Decodes an encoding whose bytes may be invalid; `as_utf8` writes each of these as `UNDECODABLE`."""
    return codecs.getincrementaldecoder(name)("tafdil_undecodable")


def as_utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def undecodable(name: str | None) -> RowFault:
    """What is wrong with a text that has an invalid byte.

    Args:
        name: the encoding, unless it is UTF-8.
    """
    if name is None:
        return RowFault("", say("not_utf8"))
    return RowFault("", say("wrong_encoding", encoding=name))


def _checked(name: str) -> str:
    try:
        found = codecs.lookup(name).name.replace("-", "_")
    except (LookupError, ValueError):
        found = ""
    known = set(encodings.aliases.aliases.values())
    if found in {"utf_8", "utf_8_sig"}:
        return "utf-8"
    no_text = {"rot_13", "mbcs", "oem", "idna", "punycode", "utf_7"}
    if found not in known - no_text or not getattr(codecs.lookup(name), "_is_text_encoding", True):
        raise UnknownEncoding(say("unknown_encoding", encoding=name[:40]))
    return found.replace("utf_16", "utf-16").replace("iso8859_", "iso8859-")


def _utf16_without_mark(head: bytes) -> str | None:
    """In UTF-16, spaces, quotes and digits have a zero as every second byte."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    least = len(head) // 50
    # A few characters have a zero as their other byte.
    if odd > max(least, 8 * even):
        return "utf-16-le"
    return "utf-16-be" if even > max(least, 8 * odd) else None


def _is_rather_utf8(head: bytes) -> bool:
    """Whether bytes are UTF-8, apart from a few broken characters."""
    text = head.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    return broken <= 1 or broken < len(text) - broken - sum(map(str.isascii, text))


def _guessed(sample: bytes) -> Unknown:
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return Unknown(())
    sample = sample[: sample.rfind(b"\n") + 1] or sample
    found = [match.encoding for match in from_bytes(sample, cp_isolation=list(_CODE_PAGES))]
    # A short text misleads the guess. An encoding that gives only Arabic letters is the right one.
    arabic = [page for page in ("cp1256", "iso8859_6") if _is_arabic(sample, page)]
    arabic.sort(key=lambda page: found.index(page) if page in found else len(found))
    return Unknown(tuple(dict.fromkeys([*arabic, *found[:4], "cp1256", "cp1252"])))


def _is_arabic(sample: bytes, page: str) -> bool:
    try:
        text = sample.decode(page)
    except UnicodeDecodeError:
        return False
    letters = [letter for letter in text if letter.isalpha() and not letter.isascii()]
    return len(letters) > 3 and len(_ARABIC.findall("".join(letters))) > 0.9 * len(letters)


def ask(unknown: Unknown, head: bytes, rows_of: Callable[[bytes], list[dict[str, object]]]) -> DataUnclear:
    """The error that asks for a text's encoding and shows the first rows in the likeliest one."""
    choices = unknown.choices
    if not choices:
        return DataUnclear.at("encoding", say("encoding_unknown"))
    guess = choices[0]
    rows = rows_of(head.decode(guess, "replace").encode())
    reason = say("encoding_unclear", guess=guess, choices=choices)
    return DataUnclear(reason, [Detail("encoding", reason)], question=Question("encoding", choices, guess, tuple(rows)))
