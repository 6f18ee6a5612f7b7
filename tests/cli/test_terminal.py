"""Tables on a terminal and off it."""

from __future__ import annotations

import io
import os
from types import SimpleNamespace

import pytest

from trtllm_scaffold import terminal


class Tty(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def tty(monkeypatch):
    stream = Tty()
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(stdout=stream))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    size = os.terminal_size((60, 24))
    monkeypatch.setattr(terminal.shutil, "get_terminal_size", lambda *_, **__: size)
    return stream


def test_the_last_column_wraps_under_itself(tty):
    terminal.table([("a check", "passed", "word " * 20)], ("check", "result", "measured"))
    lines = tty.getvalue().splitlines()
    assert lines[0] == "\033[1mcheck    result  measured\033[0m"
    assert lines[1].startswith("a check  \033[32mpassed\033[0m  word")
    assert lines[2].startswith(" " * 17 + "word")
    assert all(len(line.replace("\033[32m", "").replace("\033[0m", "")) <= 60 for line in lines[1:])


def test_no_colour_when_told_so(tty, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.table([("passed", "x")])
    assert tty.getvalue() == "passed  x\n"


def test_lines_are_whole_and_plain_off_a_terminal(capsys):
    terminal.table([("passed", "word " * 50), ("failed", "")], indent=2)
    out = capsys.readouterr().out
    assert out == "  passed  " + ("word " * 50).rstrip() + "\n  failed\n"
    terminal.table([])
    assert capsys.readouterr().out == ""


def test_what_the_stream_cannot_encode_is_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    terminal.write("naïve", stream)
    stream.seek(0)
    assert stream.read() == "na\\xefve\n"
