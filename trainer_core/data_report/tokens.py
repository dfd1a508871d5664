"""What a model's vocabulary makes of the texts: tokens per word, by side and variety, and what limits would cut.

The counts are of the text alone, without the few tokens that a chat template adds; a dry run counts those too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from trainer_core.counter_sets import Pair
from trainer_core.data_report.rows_kept import Sampled
from trainer_core.traits import seen

Count = Callable[[Sequence[str]], list[int]]
"""The number of tokens of each text."""
_AT_ONCE = 1000


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokenizer, and the limits of a run in tokens."""

    name: str
    count: Count
    max_prompt_length: int = 256
    max_length: int = 512


def vocabulary_in(folder: Path, name: str, **limits: int) -> Vocabulary | None:
    """The vocabulary of a model in a directory, from its `tokenizer.json`; None if it has none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(path))
    # Some files say how to train, and would cut or fill up every text.
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        return [len(each.ids) for each in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return Vocabulary(name, count, **limits)


class _Sum:
    def __init__(self) -> None:
        self.texts = self.tokens = self.words = self.largest = 0

    def add(self, tokens: int, words: int) -> None:
        self.texts += 1
        self.tokens += tokens
        self.words += words
        self.largest = max(self.largest, tokens)

    def as_dict(self) -> dict[str, Any]:
        return {
            "texts": self.texts,
            "tokens_per_word": round(self.tokens / max(1, self.words), 3),
            "tokens_per_text": round(self.tokens / max(1, self.texts), 2),
            "max": self.largest,
        }


def tokens_of(sample: Sequence[Sampled], vocabulary: Vocabulary) -> dict[str, Any]:
    """Tokens by side and by variety, and how many rows of the sample the limits would cut."""
    sides: dict[str, _Sum] = {}
    varieties: dict[str, _Sum] = {}
    cut = {"prompts": 0, "rows": 0, "either": 0}
    for start in range(0, len(sample), _AT_ONCE):
        part = sample[start : start + _AT_ONCE]
        texts = [_texts(each) for each in part]
        counted = iter(vocabulary.count([text for row in texts for _, text in row]))
        for each, row in zip(part, texts, strict=True):
            tokens = {side: next(counted) for side, _ in row}
            for side, text in row:
                words = len(seen(text).words)
                sides.setdefault(side, _Sum()).add(tokens[side], words)
                if side != "prompt":
                    varieties.setdefault(each.variety or "unstated", _Sum()).add(tokens[side], words)
            prompt = tokens.pop("prompt")
            is_long = prompt > vocabulary.max_prompt_length
            is_over = min(prompt, vocabulary.max_prompt_length) + max(tokens.values()) > vocabulary.max_length
            cut["prompts"] += is_long
            cut["rows"] += is_over
            cut["either"] += is_long or is_over
    return {
        "model": vocabulary.name,
        "max_prompt_length": vocabulary.max_prompt_length,
        "max_length": vocabulary.max_length,
        "rows": len(sample),
        "sides": {side: each.as_dict() for side, each in sides.items()},
        "varieties": _next_to_msa({name: each.as_dict() for name, each in sorted(varieties.items())}),
        "prompts_over_limit": cut["prompts"],
        "rows_over_limit": cut["rows"],
        "rows_over_either_limit": cut["either"],
    }


def _texts(each: Sampled) -> list[tuple[str, str]]:
    row = each.row
    if isinstance(row, Pair):
        return [("prompt", row.prompt), ("chosen", row.chosen), ("rejected", row.rejected)]
    return [("prompt", row.prompt), ("desirable" if row.label else "undesirable", row.completion)]


def _next_to_msa(varieties: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Adds how many tokens per word a variety takes in relation to Modern Standard Arabic; null if rows have none of it."""
    msa = cast("float", varieties["msa"]["tokens_per_word"]) if "msa" in varieties else 0.0
    for each in varieties.values():
        each["next_to_msa"] = round(each["tokens_per_word"] / msa, 3) if msa else None
    return varieties
