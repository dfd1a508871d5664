"""How fast do rows become token ids? `python -m benchmarks.tokenize_throughput --rows 10000`.

Pairs put together from the Arabic texts that ship, with Qwen's vocabulary and template: a text at a time, many at once as
trainings do, and again with a cache.
"""

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import SHIPPED
from tests.qwen import make_tokenizer
from trainer_core.config import IPOSettings
from trainer_core.file_cache import FileCache
from trainer_core.row_encoding import encode_rows
from trainer_core.rows import read_rows
from trainer_core.tokens import Renderer


def make_rows(count: int, texts: int) -> list[dict[str, Any]]:
    """Pairs whose prompt and answers hold so many shipped texts each."""
    shipped = read_rows(SHIPPED / "data" / "pairs_train.jsonl", "ipo")["train"]
    draw = random.Random(0)
    names = ("prompt", "chosen", "rejected")
    return [{name: " ".join(draw.choice(shipped)[name] for _ in range(texts)) for name in names} for _ in range(count)]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--texts", type=int, default=8, help="shipped texts in a prompt and in an answer")
    options = parser.parse_args()
    command = " ".join(["python -m benchmarks.tokenize_throughput", *sys.argv[1:]])
    print(f"{platform.machine()}, {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}. Made with `{command}`.\n")
    rows = make_rows(options.rows, options.texts)
    settings = IPOSettings(model_name="qwen", max_prompt_length=1024, max_length=2048)
    tokenizer = make_tokenizer()
    alone = Renderer(tokenizer)
    single, expected = timed(lambda: [alone.encode(row["prompt"], [row["chosen"], row["rejected"]]) for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        cache = FileCache(Path(folder), 2**34)
        first, (found, report) = timed(lambda: encode_rows(rows, Renderer(tokenizer), settings, cache))
        again, known = timed(lambda: encode_rows(rows, Renderer(tokenizer), settings, cache))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    if (found, report) != known or [row["prompt_ids"] for row in found] != [row.prompt_ids for row in expected]:
        sys.exit("the ways do not agree")
    print(f"{len(rows):,} pairs, {report.total_tokens:,} tokens, {size / 2**20:.0f} MiB in the cache.\n")
    print("| way | s | rows/s | times faster |\n|---|---|---|---|")
    for name, seconds in {"a text at a time": single, "many at once": first, "known before": again}.items():
        print(f"| {name} | {seconds:.2f} | {len(rows) / seconds:,.0f} | {single / seconds:.1f} |")


if __name__ == "__main__":
    main()
