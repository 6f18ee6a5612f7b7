"""The header of a modeling file: how the port differs from HF's code, and why."""

from __future__ import annotations

import textwrap

from trtllm_scaffold.plan.answers import Answers

_WIDTH = 96


def _sentences(answers: Answers) -> list[str]:
    fused = "q_proj, k_proj and v_proj are one qkv_proj"
    if answers["mlp_kind"] == "gated":
        fused += ", gate_proj and up_proj one gate_up_proj"
    lines = [
        "The tokens of all requests are packed: hidden states are [num_tokens, hidden_size], "
        "without a batch axis; lengths and the cache travel in `attn_metadata`.",
        f"{fused}: one matrix product instead of several, and the layout that tensor "
        "parallelism slices.",
    ]
    if answers["block_form"] == "fused":
        lines.append(
            "Each residual is added inside the norm that follows it, so a layer returns its last "
            "branch's output and the sum before it."
        )
    if answers["position_kind"] == "rope":
        lines.append(
            "The rotary embedding is applied by the attention module, on the fastest backend "
            "inside its kernel."
        )
    if answers["rope_scaling"] == "longrope":
        lines.append(
            "The long or the short factors are chosen once per engine, from its longest sequence; "
            "HF chooses anew at each forward, from the longest sequence of the batch."
        )
    if answers["position_kind"] == "learned":
        lines.append(
            "Attention receives no position ids: with them it would look for a rotary embedding."
        )
    if answers["qk_norm"] == "full":
        lines.append(
            "Query and key norms span all heads, hence all ranks: their mean squares are reduced "
            "over tensor parallelism."
        )
    if answers["embedding_multiplier"]:
        lines.append("The embedding's factor is rounded once, when the model is built.")
    return lines


def differences(answers: Answers) -> list[str]:
    """Markdown list items, wrapped to the port's line length."""
    return [
        textwrap.fill(line, _WIDTH, initial_indent="- ", subsequent_indent="  ")
        for line in _sentences(answers)
    ]
