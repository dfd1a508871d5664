"""The rules that are tried on a file: "the side with more of this is preferred", for traits and for words.

Traits are those of `trainer_core.traits`. Words are chosen from the file itself by how often they occur, regardless of side,
so that choosing them favours no rule: those that many answers begin or end with, and those that many answers contain.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer_core.counter_sets import kind_of
from trainer_core.traits import TRAITS, Trait, seen
from trainer_core.wording import Message, say

LENGTHS = ("characters", "words")
AMOUNTS = frozenset(trait.name for trait in TRAITS) - {
    *("mean_word_length", "longest_word", "repeated_prompt_words", "first_prompt_word_at", *LENGTHS)
}
"""Traits that are counts: a longer answer has more of each."""
_STARTS = 8
_CONTAINED = 24
_OFTEN_AT_THE_END, _OFTEN_INSIDE = 0.05, 0.10
"""Words in fewer answers cannot differ in enough rows to be a shortcut."""


@dataclass(frozen=True)
class Rule:
    """A number computed from a prompt and an answer; the side with more of it may be the preferred one.

    Attributes:
        name: a trait's name, or `first_word:`, `last_word:` or `word:` and the word as it is compared.
        trait: the trait, unless the rule is about a word.
    """

    name: str
    measure: Callable[[str, str], float]
    trait: Trait | None = None

    @property
    def word(self) -> str | None:
        return None if self.trait else self.name.partition(":")[2]

    @property
    def is_concrete(self) -> bool:
        """Whether it states what an edit can change by itself, such as a mark or a letter, rather than a consequence."""
        return self.trait is None or kind_of(self.trait) != "opposite_rows"

    @property
    def what(self) -> Message:
        """The trait in words, as a noun that continues "more of"."""
        return say("quoted_word", word=self.word) if self.word else say(f"trait.{self.name}")


TRAIT_RULES: tuple[Rule, ...] = tuple(Rule(trait.name, trait.measure, trait) for trait in TRAITS)


def word_rules(answers: Sequence[str]) -> list[Rule]:
    """Rules about the words that occur in many of the answers, those at the beginning first."""
    firsts: Counter[str] = Counter()
    lasts: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    for answer in answers:
        text = seen(answer)
        if text.keys:
            firsts[text.keys[0]] += 1
            lasts[text.keys[-1]] += 1
            inside.update(text.distinct)
    total = len(answers)
    return [
        *(_at(0, word) for word in _frequent(firsts, _OFTEN_AT_THE_END * total, _STARTS)),
        *(_at(-1, word) for word in _frequent(lasts, _OFTEN_AT_THE_END * total, _STARTS)),
        *(_contains(word) for word in _frequent(inside, _OFTEN_INSIDE * total, _CONTAINED)),
    ]


def _frequent(counts: Counter[str], least: float, most: int) -> list[str]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [word for word, count in ordered if count >= max(2, least) and not word.isnumeric()][:most]


def _at(place: int, word: str) -> Rule:
    def measure(prompt: str, answer: str) -> float:
        keys = seen(answer).keys
        return float(bool(keys) and keys[place] == word)

    return Rule(f"{'last' if place else 'first'}_word:{word}", measure)


def _contains(word: str) -> Rule:
    return Rule(f"word:{word}", lambda _, answer: float(word in seen(answer).distinct))
