"""Keeps trained models and their references ready to answer, within a memory limit. The least recently used go first."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

from trainer_core.comparison import Bases, ModelPair, load_pair
from trainer_core.models import Locate
from trainer_core.reference import model_of


class WarmPairs:
    """Pairs by name. Runs on one base share its weights: loading another adapter replaces loading another model.

    Args:
        limit_bytes: maximum size of all pairs' weights. The requested pair is kept even if it exceeds the limit.
    """

    def __init__(self, limit_bytes: int, locate: Locate) -> None:
        self._limit_bytes, self._locate = limit_bytes, locate
        self._bases = Bases()
        self._pairs: OrderedDict[str, tuple[str, ModelPair]] = OrderedDict()

    def get(self, name: str, directory: Path) -> tuple[str, ModelPair]:
        """The method and the models of the run whose result is in a directory. Raises `ModelNotFound`.

        Args:
            name: hexadecimal; identifies the pair.
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
        """Names of the loaded pairs, least recently used first."""
        return list(self._pairs)

    @property
    def bytes(self) -> int:
        """The size of all pairs' weights; shared weights count once."""
        models: dict[int, Any] = {}
        for _, pair in self._pairs.values():
            for model in (pair.policy, model_of(pair.reference)):
                models[id(model)] = model
        return sum(
            parameter.numel() * parameter.element_size() for model in models.values() for parameter in model.parameters()
        )
