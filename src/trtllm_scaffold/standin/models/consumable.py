"""ConsumableWeightsDict: a checkpoint dictionary whose entries vanish once they are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from threading import Lock
from typing import Any


class ConsumableWeightsDict(MutableMapping[str, Any]):
    """Dictionary of tensors that the loader empties module by module (1.4).

    It is a mapping, not a ``dict``: a port must not test for the type.
    """

    def __init__(self, weights: dict[str, Any]) -> None:
        self._weights = weights
        self._lock = Lock()

    def __getitem__(self, key: str) -> Any:
        return self._weights[key]

    def __setitem__(self, key: str, value: Any) -> None:
        with self._lock:
            self._weights[key] = value

    def __delitem__(self, key: str) -> None:
        with self._lock:
            del self._weights[key]

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(list(self._weights))

    def __len__(self) -> int:
        return len(self._weights)

    def filter_prefix(self, prefix: str) -> dict[str, Any]:
        """Entries below ``prefix.``, without it; every entry for an empty prefix."""
        start = f"{prefix}." if prefix else ""
        return {key[len(start) :]: self._weights[key] for key in self if key.startswith(start)}

    def mark_consumed(self, prefix: str) -> int:
        """Delete the entries below ``prefix.``; returns how many there were."""
        return self.mark_consumed_keys([key for key in self if key.startswith(f"{prefix}.")])

    def mark_consumed_keys(self, keys: Iterable[str]) -> int:
        """Delete entries; returns how many of them there were."""
        count = 0
        with self._lock:
            for key in keys:
                count += self._weights.pop(key, self) is not self
        return count

    @classmethod
    def take_ownership(cls, weights: Any, renamed_weights: dict[str, Any]) -> ConsumableWeightsDict:
        """A dictionary of the renamed entries; ``weights`` is empty afterwards."""
        for key in list(weights):
            del weights[key]
        return cls(renamed_weights)
