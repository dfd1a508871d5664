"""Recognizes files that hold no rows. One sentence says what the file is and what to send instead."""

import re
from dataclasses import dataclass

_TITLE = re.compile(r"<title[^>]*>\s*([^<]{1,80})", re.IGNORECASE)
_TEXT_OF_PAGE = re.compile(r">\s*([^<>{}]*[^\s<>{}][^<>{}]*)<")
_YAML = re.compile(r"(?:%YAML|---\s*\n|-\s+[\w\"']+\s*:\s|[\w\"']+:(?:\s*\n|\s+\S))")
_EXPORT = "export its rows as CSV, JSONL or Parquet"


@dataclass(frozen=True)
class Unreadable:
    """A kind of file that cannot be read: its short name and the sentence about it."""

    name: str
    reason: str


def _known(name: str, what: str, advice: str) -> Unreadable:
    return Unreadable(name, f"{what}, not rows: {advice}")


_PICTURE = "send its text as a table"
_MAGIC: tuple[tuple[int, bytes, Unreadable], ...] = (
    (0, b"%PDF", _known("pdf", "a PDF document", "send the original table as CSV or XLSX")),
    (0, b"\x89PNG\r\n", _known("png", "an image (PNG)", _PICTURE)),
    (0, b"\xff\xd8\xff", _known("jpeg", "an image (JPEG)", _PICTURE)),
    (0, b"GIF8", _known("gif", "an image (GIF)", _PICTURE)),
    (0, b"{\\rtf", _known("rtf", "an RTF document", "save its table as CSV or XLSX")),
    (0, b"SQLite format 3\x00", _known("sqlite", "an SQLite database", "export the table with the rows as CSV")),
    (0, b"\x93NUMPY", _known("numpy", "a NumPy array", _EXPORT)),
    (0, b"\x89HDF", _known("hdf5", "an HDF5 file", _EXPORT)),
    (0, b"Obj\x01", _known("avro", "an Avro file", _EXPORT)),
    (0, b"ORC", _known("orc", "an ORC file", _EXPORT)),
    (0, b"PARE", _known("encrypted_parquet", "an encrypted Parquet file", "send it without encryption")),
    (0, b"GGUF", _known("gguf", "model weights (GGUF)", "send the rows to train on")),
    (0, b"7z\xbc\xaf\x27\x1c", _known("7z", "a 7-Zip archive", "extract the table and send it alone, or in a zip")),
    (0, b"Rar!", _known("rar", "a RAR archive", "extract the table and send it alone, or in a zip")),
    (257, b"ustar", _known("tar", "a tar archive", "extract the table and send it alone")),
)
WORD = _known("docx", "a Word document", "save its table as CSV or XLSX")
SLIDES = _known("pptx", "a presentation", "save its table as CSV or XLSX")
TORCH = _known("pickle", "a pickled object (as torch.save and pandas.to_pickle write)", f"it could run code; {_EXPORT}")
NUMPY_ZIP = _known("numpy", "NumPy arrays (npz)", _EXPORT)
_SAFETENSORS = _known("safetensors", "model weights (safetensors)", "send the rows to train on")
_BINARY = Unreadable("binary", "an unknown binary file, not rows: export its rows as CSV, JSONL or Parquet")


def unreadable_binary(head: bytes) -> Unreadable | None:
    """What a file is, from its first `HEAD_BYTES`, if it is known to hold no rows."""
    for place, magic, found in _MAGIC:
        if head.startswith(magic, place):
            return found
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return TORCH
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 10**8:
        return _SAFETENSORS
    return None


def is_binary(head: bytes) -> bool:
    """Whether bytes are binary: they contain control characters that text does not have in any encoding."""
    allowed = b"\t\n\v\f\r\x1a\x1b"
    return 100 * sum(byte < 32 and byte not in allowed for byte in head) > len(head)


def binary() -> Unreadable:
    return _BINARY


def unreadable_text(head: str) -> Unreadable | None:
    """What a text is, if it is known to hold no rows."""
    start = head.lstrip("\ufeff \t\r\n")
    if start.startswith("version https://git-lfs"):
        advice = "run `git lfs pull`, then send the real file"
        return Unreadable("git_lfs", f"a Git LFS pointer, not the real file: {advice}")
    if start.startswith("<"):
        if re.match(r"<(?:!doctype\s+html|html|head|body)\b", start, re.IGNORECASE):
            title = _TITLE.search(start) or _TEXT_OF_PAGE.search(start)
            shown = f" (“{' '.join(title[1].split())[:80]}”)" if title else ""
            advice = "download the file itself; this may be an error or sign-in page"
            return Unreadable("html", f"an HTML page, not rows: {advice}{shown}")
        return _known("xml", "XML", _EXPORT)
    if re.match(r"--\S+\s*\r?\nContent-Disposition:", start, re.IGNORECASE):
        advice = "send the file as the request body; with curl, use --data-binary @FILE instead of -F"
        return Unreadable("form", f"a multipart form, not the file itself: {advice}")
    if _YAML.match(start):
        return _known("yaml", "YAML", "save the rows as JSONL, JSON or CSV")
    return None
