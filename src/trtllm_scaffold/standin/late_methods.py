"""Methods that exist in generation 1.4 only."""

from __future__ import annotations

from typing import Any

from trtllm_scaffold.standin.generation import active, follow


class since_1_4:  # noqa: N801  (used as a decorator)
    """Hide a method while 1.2 is played: the attribute does not exist then, as in 1.2.

    While 1.4 is played the class has the plain method: a compiler does not see this object.
    """

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped
        self.__doc__ = wrapped.__doc__
        self.__isabstractmethod__ = False

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name
        follow(self._show)

    def _show(self, generation: str) -> None:
        setattr(self.owner, self.name, self.wrapped if generation == "1.4" else self)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        kind = owner or type(instance)
        raise AttributeError(
            f"{kind.__name__!r} has no attribute {self.name!r} in TensorRT-LLM {active()}"
        )
