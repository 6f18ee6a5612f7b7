"""FP8 weights: a port that loads them computes what HF does with the de-quantised ones."""

from __future__ import annotations

import pytest
import torch

from trtllm_scaffold.verify.harness import Driver
from trtllm_scaffold.verify.parity import reference_logits
from trtllm_scaffold.verify.port_module import quiet, rounded_to
from trtllm_scaffold.verify.scenarios import prefill

from .errors import BF16_BOUND, Compared, noise_ratio
from .quantize import per_block, per_tensor, quantized_port, restored_model

pytestmark = pytest.mark.gpu

#: Families whose linear layers HF stores as the port takes them, part by part, and no experts.
DENSE = ("llama", "qwen3", "gemma3", "cohere")
ALGORITHMS = {"FP8": per_tensor, "FP8_BLOCK_SCALES": per_block}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_fp8_weights(subject, measure, algorithm):
    if subject.family not in DENSE:
        pytest.skip("its linear layers are fused, transposed or experts in HF's model")
    note = measure(f"{algorithm[:9]}", error_ratio=BF16_BOUND)
    regime, sequences = next(iter(subject.reference.sequences.items()))
    quantize, config = ALGORITHMS[algorithm], subject.reference.config
    parts, moved = [], 0.0
    with quiet():
        exact_model = restored_model(subject.reference.model, quantize)
        noisy_model = rounded_to(exact_model, torch.bfloat16)
        setup = subject.setup("bf16", regime)
        weights = subject.reference.weights
        model, layers = quantized_port(config, weights, setup, algorithm, quantize)
        for who, tokens in enumerate(sequences[1:5], start=1):
            given = tokens.to(subject.sizes.device)
            exact, noisy = (reference_logits(hf, given) for hf in (exact_model, noisy_model))
            with Driver(model, setup, max_requests=1) as driver:
                ((_, _, found),) = prefill(driver, [tokens])
            parts.append(Compared(found.to(exact.device), exact, noisy, len(tokens)))
            change = exact - subject.reference.expected("fp32", regime, who)
            moved = max(moved, float(change.square().mean().sqrt() / _rms(noisy - exact)))
    note(error_ratio=noise_ratio(parts), layers=layers, quantization_over_noise=moved)
    assert layers >= 4 * config.num_hidden_layers
    assert moved > 2, "quantization changed nothing that could be seen"


def _rms(error: torch.Tensor) -> torch.Tensor:
    return error.square().mean().sqrt()
