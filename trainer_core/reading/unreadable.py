"""Recognizes files that hold no rows. The catalogues say under `file.` what each is and what to send instead."""

import re

from trainer_core.wording import Message, say

_PAGE = re.compile(r"<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>\s*([^<]{1,80})", re.IGNORECASE)
_TEXT_OF_PAGE = re.compile(r">\s*([^<>{}]*[^\s<>{}][^<>{}]*)<")
_YAML = re.compile(r"(?:%YAML|---\s*\n|-\s+[\w\"']+\s*:\s|[\w\"']+:(?:\s*\n|\s+\S))")
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%PDF", "pdf"),
    (0, b"\x89PNG\r\n", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"GIF8", "gif"),
    (0, b"{\\rtf", "rtf"),
    (0, b"SQLite format 3\x00", "sqlite"),
    (0, b"\x93NUMPY", "numpy"),
    (0, b"\x89HDF", "hdf5"),
    (0, b"Obj\x01", "avro"),
    (0, b"ORC", "orc"),
    (0, b"PARE", "encrypted_parquet"),
    (0, b"GGUF", "gguf"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"Rar!", "rar"),
    (257, b"ustar", "tar"),
)
# Kinds that have the words of another.
_SAME_WORDS = {"doc": "docx", "ppt": "pptx"}


def not_rows(kind: str) -> Message:
    """The sentence about a kind of file that holds no rows."""
    return say("not_rows", kind=kind, what=say(f"file.{_SAME_WORDS.get(kind, kind)}"))


def unreadable_binary(head: bytes) -> Message | None:
    """What a file is, from its first `HEAD_BYTES`, if it is known to hold no rows."""
    for place, magic, kind in _MAGIC:
        if head.startswith(magic, place):
            return not_rows(kind)
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return not_rows("pickle")
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 10**8:
        return not_rows("safetensors")
    return None


def is_binary(head: bytes) -> bool:
    """Whether bytes are binary: they contain control characters that text does not have in any encoding."""
    allowed = b"\t\n\v\f\r\x1a\x1b"
    return 100 * sum(byte < 32 and byte not in allowed for byte in head) > len(head)


def _page(text: str) -> Message:
    title = _TITLE.search(text) or _TEXT_OF_PAGE.search(text)
    if title is None:
        return not_rows("html")
    return say("not_rows", kind="html", what=say("file.html_titled", title=" ".join(title[1].split())[:80]))


def unreadable_text(head: str) -> Message | None:
    """What a text is, if it is known to hold no rows."""
    start = head.lstrip("\ufeff \t\r\n")
    if start.startswith("version https://git-lfs"):
        return not_rows("git_lfs")
    if start.startswith("<"):
        return _page(start) if _PAGE.match(start) else not_rows("xml")
    if re.match(r"--\S+\s*\r?\nContent-Disposition:", start, re.IGNORECASE):
        return not_rows("form")
    if _YAML.match(start):
        return not_rows("yaml")
    return None
