"""A text-only port inside the files of the whole model: nested configuration, prefixed names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trtllm_scaffold.errors import EnvironmentProblem
from trtllm_scaffold.sources.wrapper import with_widths
from trtllm_scaffold.verify.harness import build_model
from trtllm_scaffold.verify.locate import relative_error
from trtllm_scaffold.verify.parity import BACKENDS, FP32_BOUND, Case
from trtllm_scaffold.verify.port_files import PortFiles
from trtllm_scaffold.verify.port_module import finding, quiet
from trtllm_scaffold.verify.report import Check, verdict
from trtllm_scaffold.verify.rules import prefill


def whole_config(port: PortFiles, text: Any) -> Any:
    """The port's own config.json as transformers reads it, around the tiny decoder `text`.

    Raises:
        EnvironmentProblem: The installed transformers has no class of it, or rejects it.
    """
    from transformers import CONFIG_MAPPING

    raw = dict(port.config)
    try:
        config_class: Any = CONFIG_MAPPING[raw["model_type"]]
        around = {**raw, str(port.answers["wrapper_key"]): text.to_dict()}
        following = port.answers.get("wrapper_following") or ()
        whole = config_class.from_dict(with_widths(around, following, text.hidden_size))
    except Exception as error:  # configuration classes validate in their own ways
        problem = f"transformers cannot read the whole model's configuration: {error!r}"
        raise EnvironmentProblem(problem, where=str(port.root / "config.json")) from error
    whole.architectures = list(raw["architectures"])
    return whole


def check_whole_model(case: Case, port: PortFiles) -> Check:
    """The port made from the whole model's configuration computes what its decoder does."""
    setup = case.setup(case.inputs[0], BACKENDS[0])
    problems: list[str] = []
    measured: dict[str, Any] = {"other_parts": len(port.answers.get("other_prefixes") or ())}
    try:
        with quiet():
            weights = {**case.weights, **other_tensors(port.answers)}
            model = build_model(whole_config(port, case.config), weights, setup)
            expected = prefill(case, case.model(setup), setup)
            measured["relative_error"] = relative_error(prefill(case, model, setup), expected)
        if not measured["relative_error"] <= FP32_BOUND:
            problems.append(f"logits differ by {measured['relative_error']:.2e}")
    except Exception as error:  # whatever the port raises is a finding about the port
        problems.append(finding(error, case.package))
    return verdict("whole model", problems, measured=measured, bound={"relative_error": FP32_BOUND})


def other_tensors(answers: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A tensor of each part that is not ported."""
    return {f"{prefix}weight": torch.ones(2, 3) for prefix in answers.get("other_prefixes") or ()}
