"""Text on a stream: printable, without secrets, in aligned columns, coloured on a terminal only."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TextIO

_GREEN, _RED, _YELLOW, _BOLD, _DIM = "32", "31", "33", "1", "2"
STYLES = {
    **dict.fromkeys(("passed", "native", "expressed", "ok"), _GREEN),
    **dict.fromkeys(("failed", "refused", "missing", "error"), _RED),
    **dict.fromkeys(("skipped", "reference", "old"), _YELLOW),
    "bold": _BOLD,
    "dim": _DIM,
}
"""The colour of each word that has one."""

NARROWEST = 24
"""Columns that wrapped text gets on the narrowest terminal."""

# Control characters, bidirectional overrides, surrogates and private use stay out of terminals.
_UNPRINTABLE = re.compile(
    "[^\x20-\x7e\xa0-\u200a\u2010-\u2027\u2030-\u205f\u2070-\ud7ff\uf900-\ufefe]"
)
_SECRETS = re.compile(r"hf_[A-Za-z0-9]{6,}|(?<=://)[^/\s@]+(?=@)|(?<=[Bb]earer )\S+")


def clean(text: object) -> str:
    """Return `text` as one printable line without secrets.

    Text from a model's files may hold terminal escapes and line breaks; text from libraries may
    quote request headers or an endpoint with a password.
    """
    line = " ".join(str(text).split())
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        token = os.environ.get(name, "").strip()
        if token:
            line = line.replace(token, "***")
    line = _SECRETS.sub("***", line)
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], line)


def write(text: str, stream: TextIO) -> None:
    """Print a line in whatever encoding the stream has."""
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def paint(text: str, style: str, stream: TextIO) -> str:
    """Colour `text` as the word `style` is coloured, if `stream` is a terminal."""
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb" or not stream.isatty()
    code = STYLES.get(style)
    return text if plain or code is None else f"\033[{code}m{text}\033[0m"


def width(stream: TextIO) -> int:
    """Columns of the terminal; lines of anything else are left whole."""
    return shutil.get_terminal_size().columns if stream.isatty() else 1 << 16


def wrapped(text: str, columns: int) -> list[str]:
    """Break one line into lines of at most `columns`, never inside a word or a path."""
    return textwrap.wrap(text, max(NARROWEST, columns), break_on_hyphens=False) or [""]


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), indent: int = 0) -> None:
    """Print aligned columns on stdout; the last one is wrapped to a terminal's width."""
    lines = [[clean(cell) for cell in row] for row in rows]
    if header:
        lines.insert(0, list(header))
    if not lines:
        return
    widths = [max(map(len, column)) for column in list(zip(*lines, strict=True))[:-1]]
    margin = indent + sum(widths) + 2 * len(widths)
    room = width(sys.stdout) - margin
    for number, (*cells, last) in enumerate(lines):
        parts = [
            paint(f"{cell:<{columns}}", cell, sys.stdout)
            for cell, columns in zip(cells, widths, strict=True)
        ]
        parts.append(("\n" + " " * margin).join(wrapped(last, room)))
        text = (" " * indent + "  ".join(parts)).rstrip()
        write(paint(text, "bold", sys.stdout) if header and number == 0 else text, sys.stdout)
