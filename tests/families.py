"""Which published configurations and variants must become ports, and which must be refused."""

from __future__ import annotations

import json
from pathlib import Path

from published_configs import FOLDER, PUBLISHED, VARIANTS, load

PORTED = (*PUBLISHED, *VARIANTS)

#: What must be refused -> the axis that the refusal names.
REFUSED = {
    "google-t5__t5-small": "encoder-decoder",
    "ai21labs__Jamba-v0.1": "attention",
    "mistralai__Devstral-2-123B-Instruct-2512": "quantization",
}


def config_file(name: str, folder: Path) -> Path:
    """The file of a published name, or one written into a folder beside `folder` for a variant."""
    if name not in VARIANTS:
        return FOLDER / f"{name}.json"
    source = folder.with_name(f"{folder.name}-source")
    source.mkdir(exist_ok=True)
    path = source / "config.json"
    path.write_text(json.dumps(load(name)))
    return path
