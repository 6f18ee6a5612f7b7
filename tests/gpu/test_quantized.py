"""FP8 weights: a port that loads them computes what HF does with the de-quantised ones."""

from __future__ import annotations

import pytest

from trtllm_scaffold.verify.harness import Driver
from trtllm_scaffold.verify.locate import relative_error
from trtllm_scaffold.verify.parity import reference_logits
from trtllm_scaffold.verify.port_module import quiet
from trtllm_scaffold.verify.scenarios import prefill

from .errors import FP32_BOUND
from .quantize import per_block, per_tensor, quantized_port, restored_model

pytestmark = pytest.mark.gpu

#: Families whose linear layers HF stores as the port takes them, part by part, and no experts.
DENSE = ("llama", "qwen3", "gemma3", "cohere")
ALGORITHMS = {"FP8": per_tensor, "FP8_BLOCK_SCALES": per_block}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_fp8_weights(subject, measure, algorithm):
    if subject.family not in DENSE:
        pytest.skip("its linear layers are fused, transposed or experts in HF's model")
    note = measure(algorithm, relative_error=FP32_BOUND)
    regime, sequences = next(iter(subject.reference.sequences.items()))
    quantize, config = ALGORITHMS[algorithm], subject.reference.config
    errors, moved = [], []
    with quiet():
        reference = restored_model(subject.reference.model, quantize)
        setup = subject.setup("fp32", regime)
        weights = subject.reference.weights
        model, layers = quantized_port(config, weights, setup, algorithm, quantize)
        for who, tokens in enumerate(sequences[1:5], start=1):
            expected = reference_logits(reference, tokens.to(subject.sizes.device)).cpu()
            with Driver(model, setup, max_requests=1) as driver:
                ((_, _, found),) = prefill(driver, [tokens])
            errors.append(relative_error(found, expected))
            plain = subject.reference.expected("fp32", regime, who).cpu()
            moved.append(relative_error(expected, plain))
    note(relative_error=max(errors), layers=layers, moved_by_quantization=min(moved))
    assert layers >= 4 * config.num_hidden_layers
    # A port that reads the unquantized weights instead must fail by far.
    assert min(moved) > 5 * FP32_BOUND, "quantization changed nothing that could be seen"
