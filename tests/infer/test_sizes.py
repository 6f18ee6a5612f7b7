from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from published_configs import ALL, classes_of, config_of, load

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.quantity import Fitter
from trtllm_scaffold.infer.shrink import shrink
from trtllm_scaffold.infer.sizes import ObservedSizes, infer_sizes
from trtllm_scaffold.spec.checkpoint import CheckpointSpec, TensorSpec


def tensors_of(config):
    """The tensors of a plain checkpoint that show a model-wide size."""
    width = config.hidden_size
    return (
        TensorSpec("embed.weight", (config.vocab_size, width), ("embedding.weight",)),
        TensorSpec("l.{i}.o", (2 * width, width), ("attention.o.weight",), transposed=True),
        TensorSpec("norm.weight", (width,), ("final_norm.weight",)),
    )


def setting(name):
    raw = load(name)
    classes = classes_of(raw)
    tiny = [config_of(shrink(raw, classes, style="odd", variant=v)) for v in (0, 1)]
    seen = [ObservedSizes(c.hidden_size, c.num_hidden_layers, c.vocab_size) for c in tiny]
    real = config_of(raw)
    return Fitter(tiny, real, held=raw), seen, real, CheckpointSpec(tensors_of(real))


@pytest.mark.parametrize("name", ALL)
def test_sizes_come_from_canonical_names_with_every_witness(name):
    fitter, seen, real, checkpoint = setting(name)
    sizes, evidence = infer_sizes(fitter, seen, real, checkpoint)
    assert sizes.hidden_size.expr == "config.hidden_size"
    assert sizes.hidden_size.value == real.hidden_size
    assert sizes.num_hidden_layers.expr == "config.num_hidden_layers"
    assert sizes.vocab_size.expr == "config.vocab_size"
    assert sizes.max_position_embeddings.value == real.max_position_embeddings
    witnesses = {(e.fact, e.witness) for e in evidence}
    assert {("hidden_size", w) for w in ("config", "trace", "checkpoint")} <= witnesses
    assert {("vocab_size", w) for w in ("config", "trace", "checkpoint")} <= witnesses
    assert ("max_position_embeddings", "config") in witnesses


def test_tensors_of_another_size_name_both_values():
    fitter, seen, real, checkpoint = setting("meta-llama__Llama-2-7b-hf")
    first, *rest = checkpoint.tensors
    grown = CheckpointSpec((replace(first, shape=(32016, 4096)), *rest))
    with pytest.raises(Refused) as caught:
        infer_sizes(fitter, seen, real, grown)
    assert "32000" in str(caught.value) and "[32016, 4096]" in str(caught.value)


def test_too_few_learned_positions_name_both_values():
    fitter, seen, real, checkpoint = setting("openai-community__gpt2")
    table = TensorSpec("wpe.weight", (512, 768), ("position.weight",), per_layer=False)
    with pytest.raises(Refused) as caught:
        infer_sizes(fitter, seen, real, CheckpointSpec((*checkpoint.tensors, table)))
    assert "1024" in str(caught.value) and "[512, 768]" in str(caught.value)


def test_without_a_length_the_runtime_default_is_used_and_said():
    fitter, seen, _, checkpoint = setting("meta-llama__Llama-2-7b-hf")
    sizes, evidence = infer_sizes(fitter, seen, SimpleNamespace(), checkpoint)
    assert (sizes.max_position_embeddings.value, sizes.max_position_embeddings.expr) == (
        2048,
        "2048",
    )
    assert evidence[-1].witness == "class default"


def test_a_size_that_no_key_sets_is_refused():
    fitter, seen, real, checkpoint = setting("meta-llama__Llama-2-7b-hf")
    wrong = [replace(sizes, hidden_size=sizes.hidden_size * 7919 + 13) for sizes in seen]
    with pytest.raises(Refused, match="hidden_size"):
        infer_sizes(fitter, wrong, real, checkpoint)
