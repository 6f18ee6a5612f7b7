"""Puts the template's history, as a git bundle, into the sdist and into the wheel."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TemplateHistory(BuildHookInterface):  # type: ignore[type-arg]
    """Builds the bundle from a checkout; without one, takes what the sdist brought."""

    aside: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the bundle and its version to the archive that is being built."""
        if version == "editable":
            return  # an editable install reads the checkout itself
        root = Path(self.root)
        sys.path.insert(0, str(root / "src"))
        from trtllm_scaffold.lifecycle.bundle import BUNDLE, VERSION, build, is_checkout

        place = "trtllm_scaffold/_template/" if self.target_name == "wheel" else ""
        source = root
        if is_checkout(root):
            source = self.aside = Path(tempfile.mkdtemp(prefix="trtllm-scaffold-build-"))
            build(root, source)
        elif not (root / BUNDLE).is_file():
            raise RuntimeError(
                f"no {BUNDLE} and no git checkout at {root}: build from a clone or from an sdist"
            )
        for name in (BUNDLE, VERSION):
            build_data["force_include"][str(source / name)] = place + name

    def finalize(self, *_: Any) -> None:
        """Remove what was made for the archive."""
        if self.aside is not None:
            shutil.rmtree(self.aside, ignore_errors=True)
