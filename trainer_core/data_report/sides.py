"""Lengths and signs of the texts of each side, and of each variety that rows state: `msa`, `egyptian`, `gulf` and so on."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from trainer_core.data_report.spelling import signs_of
from trainer_core.traits import Text

VARIETIES = ("msa", "egyptian", "gulf", "levantine", "maghrebi", "other")
_NAMES = {
    "msa": "msa|standard|formal|fusha|fus-ha|arb|ar|classical|modern standard arabic|فصحى|الفصحى|فصيح",
    "egyptian": "egyptian|egypt|egy|eg|arz|ar-eg|cairene|cairo|masri|مصري|مصرية|المصرية",
    "gulf": "gulf|glf|khaliji|saudi|emirati|kuwaiti|qatari|bahraini|omani|najdi|hijazi|afb|ar-sa|ar-ae|ar-kw|ar-qa"
    "|خليجي|خليجية|سعودي",
    "levantine": "levantine|lev|shami|syrian|lebanese|jordanian|palestinian|apc|ajp|ar-sy|ar-lb|ar-jo|ar-ps"
    "|شامي|شامية|سوري|لبناني|أردني|فلسطيني",
    "maghrebi": "maghrebi|mgr|maghreb|moroccan|algerian|tunisian|libyan|darija|ary|arq|aeb|ayl|ar-ma|ar-dz|ar-tn"
    "|مغربي|مغربية|دارجة|جزائري|تونسي",
}
_VARIETY_OF = {name: variety for variety, names in _NAMES.items() for name in names.split("|")}
_LAST_OF_HUNDRED = 95


def variety_of(row: dict[str, Any]) -> str | None:
    """The variety that a row states in its field `dialect`; None if it states none."""
    stated = row.get("dialect")
    if not isinstance(stated, str) or not stated.strip():
        return None
    return _VARIETY_OF.get(stated.strip().lower().replace("_", "-"), "other")


@dataclass
class Side:
    """The texts of one side, or of one variety on it."""

    characters: "array[int]" = field(default_factory=lambda: array("l"))
    words: "array[int]" = field(default_factory=lambda: array("l"))
    texts_with: Counter[str] = field(default_factory=Counter[str])
    amounts: Counter[str] = field(default_factory=Counter[str])

    def add(self, text: Text, signs: list[tuple[str, int]]) -> None:
        self.characters.append(len(text.text))
        self.words.append(len(text.words))
        for sign, amount in signs:
            self.texts_with[sign] += 1
            self.amounts[sign] += amount

    def as_dict(self) -> dict[str, Any]:
        """Lengths, and how many texts have each sign that occurs."""
        texts, characters = len(self.characters), sum(self.characters)
        signs = {
            sign: {
                "texts": count,
                "share": round(count / texts, 4),
                "per_1000_characters": round(1000 * self.amounts[sign] / max(1, characters), 2),
            }
            for sign, count in sorted(self.texts_with.items())
        }
        return {"texts": texts, "characters": spread(self.characters), "words": spread(self.words), "signs": signs}


def spread(numbers: "array[int]") -> dict[str, float]:
    """Mean, median, the number that 95 of 100 do not exceed, and the largest."""
    ordered = sorted(numbers)
    if not ordered:
        return {"mean": 0.0, "median": 0, "p95": 0, "max": 0}
    last = ordered[min(len(ordered) - 1, len(ordered) * _LAST_OF_HUNDRED // 100)]
    mean = round(sum(ordered) / len(ordered), 2)
    return {"mean": mean, "median": ordered[len(ordered) // 2], "p95": last, "max": ordered[-1]}


class Sides:
    """The texts of a file by side and by variety."""

    def __init__(self) -> None:
        self.whole: dict[str, Side] = {}
        self.by_variety: dict[str, dict[str, Side]] = {}

    def add(self, side: str, variety: str | None, text: Text) -> None:
        signs = list(signs_of(text))
        self.whole.setdefault(side, Side()).add(text, signs)
        self.by_variety.setdefault(variety or "unstated", {}).setdefault(side, Side()).add(text, signs)

    @property
    def varieties(self) -> list[str]:
        """The varieties that rows state, in a fixed order; `unstated` last."""
        return [name for name in (*VARIETIES, "unstated") if name in self.by_variety]

    def as_dict(self) -> dict[str, Any]:
        """`sides`, and `varieties` if rows state any."""
        named = [] if self.varieties == ["unstated"] else self.varieties
        return {
            "sides": {side: each.as_dict() for side, each in self.whole.items()},
            "varieties": {
                variety: {side: each.as_dict() for side, each in self.by_variety[variety].items()} for variety in named
            },
        }
