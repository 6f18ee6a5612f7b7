"""`check`: the contract and the load proof of a port, without torch and without weights."""

from __future__ import annotations

from pathlib import Path

from trtllm_scaffold.verify.contract import check_contract, generations_to_check
from trtllm_scaffold.verify.load import check_load
from trtllm_scaffold.verify.port_files import read_port
from trtllm_scaffold.verify.report import Check


def check_port(
    port: Path, *, checkpoint: Path | None = None, trtllm: str | None = None
) -> list[Check]:
    """Check the port in folder `port`.

    Args:
        port: What ``trtllm-scaffold new`` wrote.
        checkpoint: A folder whose safetensors headers replace the recorded shapes.
        trtllm: "1.2", "1.4", "all", or None for the generation that the port records.

    Raises:
        InputError: If it is not a port, or one of its files is unreadable.
        UsageError: If `trtllm` names no generation.
    """
    files = read_port(port)
    checks = [check_contract(files, name) for name in generations_to_check(files, trtllm)]
    return [*checks, check_load(files, checkpoint)]
