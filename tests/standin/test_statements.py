"""The table of statements: complete, explained, and the page made from it up to date."""

from __future__ import annotations

import re

from .statements import sections, statements
from .statements.page import PAGE, page, proofs
from .statements.sources import SOURCES

#: Sections of the two documents of facts about TensorRT-LLM.
REQUIRED = {
    "0",
    *(f"A{number}" for number in range(1, 15)),
    "B",
    *(f"C{number}" for number in range(1, 7)),
    "D",
    *(f"E{number}" for number in range(1, 4)),
    "W0",
    *(f"W1.{number}" for number in range(1, 9)),
    *(f"W2.{number}" for number in range(1, 10)),
    *(f"W3.{number}" for number in range(1, 8)),
    *(f"W4.{number}" for number in range(1, 5)),
    *(f"W5.{number}" for number in range(1, 6)),
    *(f"W6.{number}" for number in range(1, 8)),
}


def test_every_section_is_there_and_has_statements():
    assert set(sections()) == REQUIRED
    assert {item.section for item in statements()} == REQUIRED


def test_every_statement_has_a_test_or_a_reason_and_not_both():
    tests = proofs()
    gaps = [item.key for item in statements() if not (item.key in tests or item.why_not)]
    doubled = [item.key for item in statements() if item.key in tests and item.why_not]
    assert gaps == [] and doubled == []


def test_tests_name_statements_that_exist():
    known = {item.key for item in statements()}
    assert set(proofs()) <= known
    assert len(known) == len(statements())


def test_statements_are_well_formed():
    for item in statements():
        assert item.generation in ("1.2", "1.4", "both"), item.key
        assert re.fullmatch(r"(0|[A-E]\d*|W\d(\.\d)?)-\d+", item.key), item.key
        assert item.text.endswith((".", 'X".')), item.key
        assert item.sources, item.key
        assert bool(item.correction) == bool(item.read), (
            f"{item.key}: a correction cites its source"
        )


def test_keys_of_sources_are_explained():
    keys = {
        key
        for item in statements()
        for key in re.findall(r"\b[A-Z]{2,}-[a-z0-9A-Z]+\b", item.sources)
    }
    assert keys <= set(SOURCES)


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run statements/page.py --write"
