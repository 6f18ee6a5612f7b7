"""A repository with two releases, made once for each file of tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from template_releases import change_template, make_repository, release


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with v0.1.0, today's template, and v0.2.0, one that differs."""
    repository = make_repository(tmp_path_factory.mktemp("releases") / "repository")
    change_template(repository)
    release(repository, "0.2.0")
    return repository
