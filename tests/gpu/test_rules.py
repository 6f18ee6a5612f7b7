"""What a production runtime does with a port: meta tensors, CUDA graphs, compilation, ranks."""

from __future__ import annotations

import pytest
import torch

from trtllm_scaffold.verify.cuda_graph import CapturedStep
from trtllm_scaffold.verify.harness import Piece
from trtllm_scaffold.verify.locate import relative_error
from trtllm_scaffold.verify.parallel import BOUND, check_parallel, jobs_for
from trtllm_scaffold.verify.port_module import quiet
from trtllm_scaffold.verify.rules import check_meta_init
from trtllm_scaffold.verify.split import Split

from .errors import FP32_BOUND

pytestmark = pytest.mark.gpu

#: Without a GPU a port's own attention is the plain formula, which asks the host for lengths.
PLAIN_FORMULA = "on the CPU the port's own attention reads sequence lengths on the host"

#: Inductor keeps float32 where eager rounds between two operations: more exact, but not the same.
COMPILED = {
    "eager": {"backend": "eager"},
    "inductor": {"backend": "inductor", "options": {"emulate_precision_casts": True}},
}


def first_regime(subject):
    return next(iter(subject.reference.sequences.items()))


def need_cuda(subject):
    if subject.sizes.device != "cuda":
        pytest.skip("needs a CUDA device, this is a dry run")


def decode_pieces(sequences, steps, count):
    """The decode step `count` of every sequence."""
    pieces = []
    for who, tokens in enumerate(sequences):
        place = len(tokens) - steps + count
        pieces.append(Piece(who, tokens[place : place + 1], place, False))
    return pieces


def prefill_all(driver, sequences, steps):
    driver.reserve({who: len(tokens) for who, tokens in enumerate(sequences)})
    for who, tokens in enumerate(sequences):
        driver.forward([Piece(who, tokens[: len(tokens) - steps], 0, True)])


def test_decode_does_not_wait_for_the_device(subject, measure):
    note = measure("no host sync")
    need_cuda(subject)
    regime, sequences = first_regime(subject)
    batch, steps = sequences[1:5], subject.sizes.steps
    with quiet(), subject.driver("bf16", regime, batch) as driver, torch.inference_mode():
        prefill_all(driver, batch, steps)
        pieces = decode_pieces(batch, steps, 0)
        driver.forward(pieces)  # what is compiled or allocated once waits
        metadata = driver.metadata(pieces)
        metadata.prepare()
        tokens, positions = driver.packed(pieces)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            driver.model.forward(attn_metadata=metadata, input_ids=tokens, position_ids=positions)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    note()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_decode_is_captured_and_replayed(subject, measure, dtype):
    bound = {"relative_error": FP32_BOUND} if dtype == "fp32" else {"error_over_noise": 1.0}
    note = measure(f"{dtype} CUDA graph", **bound)
    need_cuda(subject)
    regime, sequences = first_regime(subject)
    batch, steps = sequences[1:], subject.sizes.steps
    found = []
    with quiet(), subject.driver(dtype, regime, batch) as driver, torch.inference_mode():
        prefill_all(driver, batch, steps)
        captured = CapturedStep(driver, decode_pieces(batch, steps, 0))
        for count in range(3):
            pieces = decode_pieces(batch, steps, count)
            replayed = captured.replay(pieces).clone()
            found.append((replayed, torch.cat(driver.forward(pieces))))
    errors = [relative_error(replayed, eager) for replayed, eager in found]
    apart = (found[1][0] - found[2][0]).square().mean().sqrt()
    off = (found[1][0] - found[1][1]).square().mean(dim=-1).median().sqrt()
    noise = graph_noise(subject, regime, batch, dtype)
    note(
        relative_error=max(errors),
        replays=len(errors),
        error_over_noise=float(off / noise) if noise else 0.0,
    )
    assert float(apart) > 10 * float(off), "replays of different tokens give the same logits"


def graph_noise(subject, regime, batch, dtype):
    """Median over sequences of HF's RMS error in `dtype` at the second decode step."""
    if dtype == "fp32":
        return 0.0
    steps = subject.sizes.steps
    rows = []
    for who, tokens in enumerate(batch, start=1):
        place = len(tokens) - steps + 1
        exact = subject.reference.expected("fp32", regime, who)[place]
        noisy = subject.reference.expected(dtype, regime, who)[place]
        rows.append((noisy - exact).square().mean())
    return float(torch.stack(rows).median().sqrt())


def test_meta_initialisation(subject, measure):
    note = measure("meta init", relative_error=FP32_BOUND)
    regime, sequences = first_regime(subject)
    check = check_meta_init(subject.case(regime, [sequences[0]]))
    assert check.status == "passed", check.reason
    note(**check.measured)


def test_two_ranks_on_one_device(subject, measure, ranks):
    note = measure("TP 2", relative_error=BOUND)
    regime, sequences = first_regime(subject)
    pieces = [sequences[0][:length] for length in subject.sizes.ranks]
    case = subject.case(regime, pieces)
    jobs = jobs_for([case], "standin", subject.generation)
    check = check_parallel(ranks, jobs, Split(tp_size=2))
    assert check.status == "passed", check.reason
    note(relative_error=check.measured["relative_error"])


def test_a_layer_compiles_without_graph_breaks(subject, measure):
    """Compiled once; prefill and two decode steps, each batch with metadata of its own."""
    note = measure("torch.compile", error_over_noise=1.0)
    regime, sequences = first_regime(subject)
    batch, steps = sequences[1:4], subject.sizes.steps
    errors = []
    with quiet(), subject.driver("bf16", regime, batch) as driver, torch.inference_mode():
        prefill_all(driver, batch, steps)
        batches = [
            [Piece(0, batch[0][: len(batch[0]) - steps], 0, True)],
            decode_pieces(batch, steps, 0),
            decode_pieces(batch, steps, 1),
        ]
        torch._dynamo.reset()
        compiled = torch.compile(
            driver.model.model.layers[-1], fullgraph=True, **COMPILED[subject.sizes.compiler]
        )
        for pieces in batches:
            layer, args, kwargs = last_call(driver, pieces)
            eager = first_tensor(layer(*cloned(args), **cloned(kwargs))).float()
            try:
                found = first_tensor(compiled(*cloned(args), **cloned(kwargs))).float()
            except torch._dynamo.exc.TorchDynamoException as error:
                if subject.own_attention and subject.sizes.device != "cuda":
                    pytest.xfail(f"{PLAIN_FORMULA}: {' '.join(str(error).split())[:200]}")
                raise
            scale = eager.square().mean().sqrt()
            errors.append((found - eager).square().mean(dim=-1).median().sqrt() / scale)
    note(error_over_noise=float(max(errors) / torch.finfo(torch.bfloat16).eps))


def last_call(driver, pieces):
    """The last layer with what it is called with in one forward pass."""
    seen = []
    layer = driver.model.model.layers[-1]

    def keep(_module, args, kwargs):
        seen.append((cloned(args), cloned(kwargs)))

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        driver.forward(pieces)
    finally:
        handle.remove()
    return layer, *seen[0]


def cloned(given):
    """A copy whose tensors are copies: a layer may write to what it is given."""
    if isinstance(given, torch.Tensor):
        return given.clone()
    if isinstance(given, dict):
        return {key: cloned(value) for key, value in given.items()}
    return tuple(cloned(value) for value in given) if isinstance(given, tuple) else given


def first_tensor(output):
    return output[0] if isinstance(output, tuple) else output
