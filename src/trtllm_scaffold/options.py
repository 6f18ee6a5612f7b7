"""The options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Generation(str, Enum):
    """The TensorRT-LLM generations that a port can target."""

    v1_2 = "1.2"
    v1_4 = "1.4"


class Generations(str, Enum):
    """The generations that a port can be checked against."""

    v1_2 = "1.2"
    v1_4 = "1.4"
    all = "all"


class Device(str, Enum):
    """Where a proof runs."""

    cpu = "cpu"
    cuda = "cuda"


class Runtime(str, Enum):
    """What a proof runs the port on."""

    auto = "auto"
    standin = "standin"
    tensorrt_llm = "tensorrt_llm"


class Dtype(str, Enum):
    """The floating point types of a proof."""

    both = "both"
    float32 = "float32"
    bfloat16 = "bfloat16"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the model's own code. Read it first.")
]
Port = Annotated[Path, typer.Argument(help="The folder that `new` wrote.", metavar="PORT")]
TextOnly = Annotated[
    bool,
    typer.Option("--text-only", help="Port the text decoder of a model that reads more than text."),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit on the hub.", metavar="REV")
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Folder of a real checkpoint; only its headers are read.", metavar="DIR"),
]
