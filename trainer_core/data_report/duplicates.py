"""Rows that say the same twice, nearly the same, or the opposite of each other."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from trainer_core.counter_sets import Pair
from trainer_core.data_report.rows_kept import Sampled, Single
from trainer_core.row_rules import Row, comparable
from trainer_core.traits import seen

ALIKE = 0.8
"""Share of common runs of three words from which two rows are nearly the same (Jaccard)."""
_HASHES = 64
_RUN = 3
_SHOWN = 10
_COMPARED_ROWS = 1_000_000
"""Rows whose texts are compared with each other; a file's further rows are not."""

log = logging.getLogger(__name__)


class Repeats:
    """Finds equal rows, contradictions and answers that stand in several rows, while the rows pass."""

    def __init__(self) -> None:
        self._lines: dict[bytes, list[int]] = {}
        self._opposite: dict[bytes, bytes] = {}
        self._answers: dict[str, Counter[bytes]] = {}
        self._prompts: Counter[bytes] = Counter()
        self._rows = 0

    def add(self, line: int, row: Row) -> None:
        """Takes a row as it is, with its messages: answers may differ in a tool call alone."""
        if self._rows >= _COMPARED_ROWS:
            return
        self._rows += 1
        prompt = comparable(row["prompt"])
        self._prompts[_digest(prompt)] += 1
        if "chosen" in row:
            chosen, rejected = comparable(row["chosen"]), comparable(row["rejected"])
            own, other = _digest(prompt, chosen, rejected), _digest(prompt, rejected, chosen)
            answers = {"chosen": chosen, "rejected": rejected}
        else:
            answer = comparable(row["completion"])
            sides = ("desirable", "undesirable") if row["label"] else ("undesirable", "desirable")
            own, other = (_digest(prompt, answer, side) for side in sides)
            answers = {sides[0]: answer}
        self._lines.setdefault(own, []).append(line)
        self._opposite[own] = other
        for side, answer in answers.items():
            self._answers.setdefault(side, Counter())[_digest(answer)] += 1

    @property
    def distinct_prompts(self) -> int:
        return len(self._prompts)

    @property
    def most_rows_of_a_prompt(self) -> int:
        return max(self._prompts.values(), default=0)

    def as_dict(self) -> dict[str, Any]:
        again = sorted(line for lines in self._lines.values() for line in lines[1:])
        opposite = sorted(line for own, lines in self._lines.items() if self._opposite[own] in self._lines for line in lines)
        repeated = {
            side: sum(count for count in counts.values() if count > 1) for side, counts in sorted(self._answers.items())
        }
        return {
            "exact": {"rows": len(again), "lines": again[:_SHOWN]},
            "contradictions": {"rows": len(opposite), "lines": opposite[:_SHOWN]},
            "answers_in_several_rows": repeated,
        }


def near(sample: Sequence[Sampled]) -> dict[str, Any]:
    """Rows of the sample whose answers have most of their runs of three words in common with another row's, but not all."""
    # MinHash and its index are numpy's and take a second to load.
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=ALIKE, num_perm=_HASHES)
    runs: list[frozenset[str]] = []
    # One of the rows with equal runs: all others would be found with it, each time.
    indexed: set[frozenset[str]] = set()
    found: set[int] = set()
    shown: list[list[int]] = []
    for number, each in enumerate(sample):
        own = frozenset(_runs(each.row))
        runs.append(own)
        if not own:
            continue
        sketch = MinHash(num_perm=_HASHES, seed=1)
        sketch.update_batch([run.encode() for run in own])
        for other in sorted(cast("list[int]", index.query(sketch))):
            if own != runs[other] and len(own & runs[other]) >= ALIKE * len(own | runs[other]):
                if len(shown) < _SHOWN:
                    shown.append([sample[other].line, each.line])
                found |= {number, other}
                break
        if own not in indexed:
            indexed.add(own)
            index.insert(number, sketch)
    return {"rows": len(found), "lines": shown}


def _runs(row: Pair | Single) -> list[str]:
    answers = (row.chosen, row.rejected) if isinstance(row, Pair) else (row.completion,)
    words = [word for answer in answers for word in seen(answer).keys]
    return [" ".join(words[at : at + _RUN]) for at in range(len(words) - _RUN + 1)]


def _digest(*texts: str) -> bytes:
    return hashlib.blake2b("\x00".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
