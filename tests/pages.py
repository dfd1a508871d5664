"""The blocks of the documentation's pages, and what runs each of them.

A page's bash and Python blocks are one script, in one shell, in the order of the page. What differs is said in a comment on
the line before the block:

- `<!-- not run: why -->`: nothing runs it; it is parsed, and what it says of compose is compared with the compose files.
- `<!-- keys: ... -->`: it runs where keys are on.
- a mark of `RUN_ELSEWHERE`: another test runs it.

A page in Arabic (`page.ar.md`) has the blocks of `page.md`, which are run there.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ("bash", "python", "json", "yaml", "toml", "ini", "nginx", "caddy")
# Whole pages whose bash and Python blocks `tests/acceptance/test_pages.py` runs.
SCRIPTS = (
    "docs/quick_start.md",
    "docs/curl.md",
    "docs/methods.md",
    "docs/recipes.md",
    "docs/arabic_data.md",
    "docs/deploying.md",
    "docs/artifacts.md",
    "docs/layouts.md",
)
# Marks before a block, and the test that runs it.
RUN_ELSEWHERE = {
    "walk": "test_the_curl_walk",
    "library": "test_the_library_example",
    "commands": "test_the_command_line_walk",
    "client": "test_the_client_page",
    "python": "test_a_block_of_python",
    "errors": "test_the_errors_of_the_library",
    "lines": "test_each_line_does_what_it_says",
    "keys": "test_the_page_of_keys",
    "estimates": "test_the_tutorial_has_the_estimates_that_its_command_prints",
    "definitions": "test_the_formulas_of_the_page_are_what_is_reported",
}
# Pages that a test of their own runs whole.
RUN_WHOLE = {"docs/trainer_core.md": "test_every_block_of_the_page_runs"}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, the first word of its mark, what the mark says, its text."""

    page: str
    line: int
    language: str
    mark: str
    told: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_script(self) -> bool:
        """Whether it is a part of its page's script."""
        return self.page in SCRIPTS and self.language in ("bash", "python") and not self.mark


_BLOCK = re.compile(r"(?:^<!-- ([^\n]*?) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def pages() -> list[str]:
    """Every page, relative to the repository."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def original(page: str) -> str | None:
    """The English page that a page translates; None for a page that translates none."""
    return page.removesuffix(".ar.md") + ".md" if page.endswith(".ar.md") else None


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        mark, _, told = (match[1] or "").partition(": ")
        found.append(Block(page, text[: match.start(2)].count("\n") + 1, match[2], mark.split(" ")[0], told, match[3]))
    return found


def marked(page: str, mark: str) -> list[Block]:
    """The blocks of a page with a mark."""
    return [block for block in blocks(page) if block.mark == mark]


def script(found: list[Block]) -> str:
    """Blocks as one bash script, which tells on standard error where it is."""
    lines = []
    for block in found:
        lines.append(f"echo '== {block.place}' >&2")
        is_python = block.language == "python"
        lines.append(f"python3 - <<'END_OF_PYTHON'\n{block.text}END_OF_PYTHON" if is_python else block.text)
    return "\n".join(lines)


def unseen(page: str, output: str) -> list[str]:
    """Lines that the page's `text` blocks promise and the output lacks.

    All numbers count alike, and all ids; `…` stands for anything.
    """
    printed = {_alike(line) for line in output.splitlines()}
    whole = "\n".join(printed)
    missing = []
    for block in blocks(page):
        if block.language != "text" or block.mark == "not":
            continue
        for line in filter(None, map(_alike, block.text.splitlines())):
            pattern = ".*".join(re.escape(part) for part in line.split("…"))
            if not re.search(rf"^{pattern}$", whole, re.MULTILINE):
                missing.append(f"{block.place}: {line}")
    return missing


# Held-out pairs of a clone. Each of a page's runs would spend most of its time on all of them, and no number of a page is
# compared with what is printed.
_HELD_OUT = 64


def make_clone(folder: Path) -> Path:
    """A directory that looks like a clone, with few held-out pairs, where a page's lines may write."""
    held_out = folder / "tafdil" / "shipped" / "data" / "pairs_held_out.jsonl"
    held_out.parent.mkdir(parents=True)
    rows = (ROOT / held_out.relative_to(folder)).read_text(encoding="utf-8").splitlines(keepends=True)
    held_out.write_text("".join(rows[:_HELD_OUT]), encoding="utf-8")
    for place in (folder, *list(held_out.parents)[2::-1]):
        for path in (ROOT / place.relative_to(folder)).iterdir():
            if path.name not in (".git", "tafdil-data") and not (place / path.name).exists():
                (place / path.name).symlink_to(path)
    return folder


def _alike(line: str) -> str:
    line = re.sub(r"[\u2066-\u2069]", "", line)
    # Before the ids: the many decimals of a fraction would be taken for one.
    line = re.sub(r"\b\d+\.\d+(?:e-?\d+)?\b", "#", line)
    line = re.sub(r"\b[0-9a-f]{8,64}\b", "#", line)
    line = re.sub(r"\d+(?:\.\d+)?(?:e-?\d+)?", "#", line)
    return " ".join(line.split())
