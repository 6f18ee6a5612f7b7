"""Methods that exist in generation 1.4 only."""

from __future__ import annotations

from typing import Any

from trtllm_scaffold.standin.generation import active


class since_1_4:  # noqa: N801  (used as a decorator)
    """Hide a method while 1.2 is played: the attribute does not exist then, as in 1.2."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped
        self.__doc__ = wrapped.__doc__
        self.__isabstractmethod__ = False

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if active() != "1.4":
            kind = owner or type(instance)
            raise AttributeError(
                f"{kind.__name__!r} has no attribute {self.name!r} in TensorRT-LLM {active()}"
            )
        return self.wrapped.__get__(instance, owner)
