"""Which processes of the local stack hang: they are there, but give no sign of life. Decides only; ends nothing.

A part hangs once it has been silent, look after look, for a generous time on this process's own clock. A machine that slept,
or whose clock jumped, makes parts look silent for a moment: they speak again before that.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tafdil.client import Client
from tafdil.errors import TafdilClientError

API, BROKER = "api", "valkey"
_LOOK_EVERY_S = 5.0
_HEALTH_TIMEOUT_S = 2.0
_READINESS_TIMEOUT_S = 10.0
# A part that has not spoken since it was started may still be loading its libraries.
_STARTS_WITHIN = 5


@dataclass(frozen=True)
class Look:
    """What one look found: the parts that were silent for longer than the service allows, and those that were not."""

    silent: Collection[str] = ()
    alive: Collection[str] = ()


def look_at(url: str) -> Look:
    """Asks the API whether it lives, and which parts are away."""
    try:
        httpx.get(f"{url}/healthz", timeout=_HEALTH_TIMEOUT_S, trust_env=False)
    except httpx.TransportError:
        return Look(silent=[API])
    try:
        with Client(url, timeout_s=_READINESS_TIMEOUT_S) as client:
            found = client.readiness()
    except TafdilClientError:
        # It lives, but cannot say how the others are.
        return Look(alive=[API])
    return seen(found)


def seen(readiness: Mapping[str, Any]) -> Look:
    """What a readiness report says about the parts. If all are silent at once, nothing about any of them."""
    away = away_of(readiness["parts"])
    if all(away.values()):
        # Something that all of them need is missing, such as the database.
        away = {}
    away = {**away, BROKER: readiness["broker"] == "down"}
    return Look([name for name in away if away[name]], [API, *(name for name in away if not away[name])])


def away_of(parts: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Whether each part of a readiness report is away, by name.

    A part whose host was renamed is listed for both hosts until the older sign is forgotten.
    """
    away: dict[str, bool] = {}
    for part in parts:
        away[part["name"]] = away.get(part["name"], True) and part["is_away"]
    return away


@dataclass
class LifeWatch:
    """Remembers for how long each part has been silent.

    Args:
        look: takes a look.
        limit_s: how long the API and the broker may be silent. The other parts have been silent for as long when a look
            finds it, and hang if they stay silent for a quarter of it.
    """

    look: Callable[[], Look]
    limit_s: float
    clock: Callable[[], float] = time.monotonic
    _look_at: float = 0.0
    _silent_since: dict[str, float] = field(default_factory=dict[str, float])
    _alive_at: dict[str, float] = field(default_factory=dict[str, float])

    def hung(self, launched_at: Mapping[str, float]) -> list[str]:
        """The parts that hang, if it is time for another look. `launched_at`: when each was started, by the same clock."""
        if self.clock() < self._look_at:
            return []
        found = self.look()
        now = self.clock()
        self._look_at = now + min(_LOOK_EVERY_S, self.limit_s / 8)
        # What a look says nothing about starts anew.
        self._silent_since = {name: self._silent_since.get(name, now) for name in found.silent}
        self._alive_at |= dict.fromkeys(found.alive, now)
        hung = [name for name in launched_at if name in self._silent_since and self._hangs(name, launched_at[name], now)]
        for name in hung:
            del self._silent_since[name]
        return hung

    def _hangs(self, name: str, launched_at: float, now: float) -> bool:
        patience_s = self.limit_s if name in (API, BROKER) else self.limit_s / 4
        has_spoken = self._alive_at.get(name, launched_at - 1) >= launched_at
        is_started = has_spoken or now - launched_at >= _STARTS_WITHIN * self.limit_s
        return is_started and now - self._silent_since[name] >= patience_s
