"""``python -m trtllm_scaffold.standin``: run a script with the stand-in as ``tensorrt_llm``."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from trtllm_scaffold.errors import ScaffoldError
from trtllm_scaffold.targets.contract import GENERATIONS


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options before the script; everything behind it belongs to the script."""
    parser = argparse.ArgumentParser(
        prog="python -m trtllm_scaffold.standin",
        description="Run SCRIPT with the stand-in importable as tensorrt_llm.",
        epilog="The stand-in builds, debugs and proves ports. It is not a serving engine.",
    )
    parser.add_argument(
        "--trtllm", choices=GENERATIONS, default=GENERATIONS[0], help="generation to play"
    )
    parser.add_argument(
        "--custom_module_dirs",
        "--custom-module-dirs",
        action="append",
        default=[],
        metavar="DIR",
        help="package directory that registers a model when it is imported (repeatable)",
    )
    parser.add_argument("script", metavar="SCRIPT", help="Python file to run")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Install the stand-in, import the custom modules, run the script.

    Returns:
        The exit code: the script's own, or that of a :class:`ScaffoldError`.
    """
    given = parse(sys.argv[1:] if argv is None else argv)
    script = Path(given.script)
    if not script.is_file():
        print(f"error: no such script: {script}", file=sys.stderr)
        return 3
    from trtllm_scaffold.standin.custom_modules import import_custom_module_from_dir
    from trtllm_scaffold.standin.install import install

    install(given.trtllm, force=True)
    try:
        for folder in given.custom_module_dirs:
            import_custom_module_from_dir(folder)
        sys.argv = [str(script), *given.args]
        sys.path.insert(0, str(script.resolve().parent))
        runpy.run_path(str(script), run_name="__main__")
    except ScaffoldError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
