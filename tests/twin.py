"""The two clients are one text: `tafdil/client.py` is made of `tafdil/async_client.py` by leaving out what awaits.

python -m tests.twin      # after a change of the async client
"""

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "tafdil"
HEADER = "# Made of async_client.py by `python -m tests.twin`; change that file.\n"
_WORDS = (
    ("The async client of", "The client of"),
    (
        "Its sync twin is `tafdil.client.Client`, with the same methods, without `await`",
        "Its async twin is `tafdil.async_client.AsyncClient`, with the same methods, awaited",
    ),
    (r"\basync (def|with|for) ", r"\1 "),
    (r"\bawait ", ""),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"import asyncio\n", ""),
    (r"\bAsyncGenerator\b", "Generator"),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"(?<!async_client\.)\bAsyncClient\b", "Client"),
    (r"\bAsyncJob\b", "Job"),
    (r"\bAsync(HeldOut\w+)\b", r"\1"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\ba(iter_lines|iter_bytes|read|close)\(", r"\1("),
)


def sync_of(text: str) -> str:
    """The text of the sync client, formatted as all code is."""
    for pattern, word in _WORDS:
        text = re.sub(pattern, word, text)
    for command in (["check", "--fix-only", "--select", "I"], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *command, "-q", "--stdin-filename", str(FOLDER / "client.py"), "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return HEADER + text


def main() -> None:
    (FOLDER / "client.py").write_text(sync_of((FOLDER / "async_client.py").read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
