"""Trained models with their references, ready to answer: least recently used first to go, by the memory they take."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

from trainer_core.comparison import Bases, ModelPair, load_pair
from trainer_core.models import Locate
from trainer_core.reference import model_of


class WarmPairs:
    """Pairs by name. Trainings on one base share its weights: another one's adapter takes the place of a model.

    Args:
        limit_bytes: what the weights of all pairs may take together. The pair that is asked stays, whatever it takes.
    """

    def __init__(self, limit_bytes: int, locate: Locate) -> None:
        self._limit_bytes, self._locate = limit_bytes, locate
        self._bases = Bases()
        self._pairs: OrderedDict[str, tuple[str, ModelPair]] = OrderedDict()

    def get(self, name: str, directory: Path) -> tuple[str, ModelPair]:
        """The method and the models of a training whose result lies in a directory. Raises `ModelNotFound`.

        Args:
            name: hexadecimal; what the pair is remembered by.
        """
        if name not in self._pairs:
            try:
                self._pairs[name] = load_pair(directory, self._locate, self._bases, adapter=name)
            except BaseException:
                self._bases.release(name)
                raise
        self._pairs.move_to_end(name)
        while len(self._pairs) > 1 and self.bytes > self._limit_bytes:
            self.forget(next(iter(self._pairs)))
        method, pair = self._pairs[name]
        if hasattr(pair.policy, "peft_config"):
            pair.policy.set_adapter(name)
        return method, pair

    def forget(self, name: str) -> None:
        """Drops a pair."""
        self._pairs.pop(name, None)
        self._bases.release(name)

    @property
    def names(self) -> list[str]:
        """Of the pairs that are kept, least recently used first."""
        return list(self._pairs)

    @property
    def bytes(self) -> int:
        """What the weights of all pairs take; what pairs share counts once."""
        models: dict[int, Any] = {}
        for _, pair in self._pairs.values():
            for model in (pair.policy, model_of(pair.reference)):
                models[id(model)] = model
        return sum(
            parameter.numel() * parameter.element_size() for model in models.values() for parameter in model.parameters()
        )
