"""The logger that ``tensorrt_llm.logger`` shows."""

from __future__ import annotations

import logging
from typing import Any


class Logger:
    """Thin front of :mod:`logging` with the library's method names."""

    def __init__(self) -> None:
        self._log = logging.getLogger("tensorrt_llm")
        self._seen: set[str] = set()

    def debug(self, *message: Any) -> None:
        """Log for developers."""
        self._log.debug(" ".join(map(str, message)))

    def info(self, *message: Any) -> None:
        """Log progress."""
        self._log.info(" ".join(map(str, message)))

    def warning(self, *message: Any) -> None:
        """Log something odd."""
        self._log.warning(" ".join(map(str, message)))

    def error(self, *message: Any) -> None:
        """Log a failure."""
        self._log.error(" ".join(map(str, message)))

    def info_once(self, *message: Any, key: str | None = None) -> None:
        """Log progress, once per ``key`` (default: the text)."""
        self._once(self.info, message, key)

    def warning_once(self, *message: Any, key: str | None = None) -> None:
        """Log something odd, once per ``key`` (default: the text)."""
        self._once(self.warning, message, key)

    def set_level(self, level: str) -> None:
        """Set the lowest level shown; ``verbose`` is debug, ``internal_error`` is critical."""
        names = {"verbose": "DEBUG", "internal_error": "CRITICAL"}
        self._log.setLevel(names.get(level, level.upper()))

    def _once(self, log: Any, message: tuple[Any, ...], key: str | None) -> None:
        key = key or " ".join(map(str, message))
        if key not in self._seen:
            self._seen.add(key)
            log(*message)


logger = Logger()
