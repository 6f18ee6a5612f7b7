from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.verify.html import render_html, write_html
from trtllm_scaffold.verify.report import (
    Check,
    LayerErrors,
    ProofReport,
    all_passed,
    skipped,
    verdict,
)

HOSTILE = '<script>alert("x")</script>&'


def report(*checks, layers=()):
    return ProofReport(
        port=f"ports/{HOSTILE}",
        runtime={"name": "standin", "version": "1.2.1+standin"},
        device="cpu",
        reference={"transformers": HOSTILE},
        checks=checks,
        layers=layers,
    )


def test_a_report_needs_a_check_that_passed():
    good, bad = Check("a", "passed"), Check("b", "failed", reason="no")
    assert all_passed([good, skipped("c", "why")])
    assert not all_passed([good, bad]) and not all_passed([]) and not all_passed([skipped("c", "")])
    assert report(good).passed and not report(good, bad).passed


def test_a_verdict_shows_the_first_problems():
    check = verdict("x", [str(number) for number in range(9)], shown=2)
    assert check.status == "failed" and check.reason == "0; 1; and 7 more"
    assert verdict("x", []).to_json() == {
        "name": "x",
        "status": "passed",
        "measured": {},
        "bound": {},
        "reason": "",
    }


class Balanced(HTMLParser):
    """Fails on tags that do not match, and on anything loaded from elsewhere."""

    VOID = {"meta", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_escaped_and_loads_nothing(tmp_path):
    stages = ("model.embed_tokens", "model.layers.0.mlp", "model.layers.0", "model.norm", "logits")
    layers = LayerErrors(HOSTILE, stages, (0.0, 1e-7, 0.3, float("inf"), 0.2), 1e-4)
    checks = (
        Check("parity", "failed", {"relative_error": None}, {"relative_error": 1e-4}, HOSTILE),
        Check("contract", "passed", {"violations": []}, {"violations": 0}),
        skipped("graph", HOSTILE),
    )
    path = tmp_path / "report.html"
    write_html(report(*checks, layers=(layers,)), path)
    page = path.read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == [] and "script" not in parser.seen
    assert {"svg", "circle", "table"} <= parser.seen
    assert "leaves HF&#x27;s at" in page or "leaves HF's at model.layers.0" in page
    assert not re.search(r"(https?:)?//|@import|url\(", page)
    assert page.count("<circle") == 5


def test_the_stand_in_is_named_as_such():
    assert "Nothing here ran on TensorRT-LLM itself" in render_html(report(Check("a", "passed")))


def test_a_file_that_cannot_be_written_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        write_html(report(), tmp_path / "absent" / "report.html")
