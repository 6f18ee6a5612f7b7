"""One MLA layer on the stand-in, its weights, and the formula that it must compute."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from trtllm_scaffold.standin.install import install

HEADS, NOPE, ROPE, V, RANK, Q_RANK, HIDDEN, EPS = 4, 10, 6, 7, 18, 22, 30, 1e-3
#: YaRN with both magnitudes, so that table and softmax scale carry different factors.
YARN = {
    "scale": 8.0,
    "original_max_positions": 16,
    "beta_fast": 24,
    "beta_slow": 2,
    "mscale": 0.7,
    "mscale_all_dim": 1.3,
}


@dataclass(frozen=True)
class Case:
    """What is built: the generation, the backend and the form."""

    gen: str
    backend: str = "TRTLLM"
    lite: bool = False
    neox: bool = False


def names(gen: str) -> SimpleNamespace:
    """The runtime's names, freshly installed."""
    install(gen, force=True)
    t = "tensorrt_llm._torch"
    old = gen == "1.2"
    interface = f"{t}.attention_backend.interface" if old else f"{t}.attention.backends.interface"
    homes = {
        "MLA": f"{t}.modules.attention" if old else f"{t}.attention.mla",
        "RopeParams": interface,
        "PositionalEmbeddingParams": interface,
        "get_attention_backend": interface.replace("interface", "utils"),
        "PositionEmbeddingType": "tensorrt_llm.functional",
        "RotaryScalingType": "tensorrt_llm.functional",
        "Mapping": "tensorrt_llm.mapping",
        "ModelConfig": f"{t}.model_config",
        "KVCacheParams": f"{t}.metadata",
        "KVCacheManager": f"{t}.pyexecutor.resource_manager",
        "KvCacheConfig": "tensorrt_llm.bindings.executor",
        "CacheType": "tensorrt_llm.bindings.internal.batch_manager",
        "DataType": "tensorrt_llm.bindings",
    }
    return SimpleNamespace(
        **{name: getattr(importlib.import_module(home), name) for name, home in homes.items()}
    )


def build(case: Case, mapping: dict[str, int] | None = None, **changes):
    """The layer, not filled, and its config."""
    api = names(case.gen)
    rope = api.RopeParams(
        dim=ROPE,
        theta=500.0,
        scale_type=api.RotaryScalingType.yarn,
        max_positions=64,
        duplicate_data=True,
        **YARN,
    )
    config = api.ModelConfig(
        pretrained_config=SimpleNamespace(rms_norm_eps=EPS, architectures=None),
        attn_backend=case.backend,
        mapping=api.Mapping(**(mapping or {})),
    )
    given = {
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE,
        "v_head_dim": V,
        "q_lora_rank": None if case.lite else Q_RANK,
        "kv_lora_rank": RANK,
        "predicted_tokens_per_seq": 1,
        "max_position_embeddings": 64,
        "bias": False,
        "pos_embd_params": api.PositionalEmbeddingParams(
            type=api.PositionEmbeddingType.yarn, rope=rope, is_neox=case.neox
        ),
        "layer_idx": 0,
        "dtype": torch.float32,
        "config": config,
    }
    return api, api.MLA(**{**given, **changes}), config


def weights(lite: bool) -> dict[str, torch.Tensor]:
    """Random matrices as a model writes them: by head, nothing packed."""
    generator = torch.Generator().manual_seed(3)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5

    inner = HIDDEN if lite else Q_RANK
    return {
        "q_a": matrix(Q_RANK, HIDDEN),
        "q_norm": 1 + 0.4 * matrix(Q_RANK),
        "q": 2 * matrix(HEADS, NOPE + ROPE, inner),
        "latent": matrix(RANK, HIDDEN),
        "shared": 2 * matrix(ROPE, HIDDEN),
        "kv_norm": 1 + 0.4 * matrix(RANK),
        "k": 2 * matrix(HEADS, NOPE, RANK),
        "v": matrix(HEADS, V, RANK),
        "o": matrix(HIDDEN, HEADS * V),
    }


def fill(layer, held: dict[str, torch.Tensor], tp: int = 1, rank: int = 0):
    """Pack this rank's share as the module wants it."""
    mine = slice(rank * HEADS // tp, (rank + 1) * HEADS // tp)
    q, k, v = (held[name][mine] for name in "qkv")
    rows = [held["latent"], held["shared"]]
    packed = {
        "kv_b_proj.weight": torch.cat([k.flatten(0, 1), v.flatten(0, 1)]),
        "k_b_proj_trans": k.transpose(1, 2),
        "v_b_proj": v,
        "kv_a_layernorm.weight": held["kv_norm"],
        "o_proj.weight": held["o"].chunk(tp, dim=1)[rank],
        "q_proj.weight" if layer.is_lite else "q_b_proj.weight": q.flatten(0, 1),
    }
    if not layer.is_lite:
        packed["q_a_layernorm.weight"] = held["q_norm"]
        rows = [held["q_a"], *rows]
    packed["kv_a_proj_with_mqa.weight"] = torch.cat(rows)
    parameters = dict(layer.named_parameters())
    assert set(parameters) == set(packed)
    with torch.no_grad():
        for name, value in packed.items():
            assert parameters[name].shape == value.shape, name
            parameters[name].copy_(value)
    return layer.eval()


def _normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + EPS).rsqrt() * weight


def _turned(x: torch.Tensor, neox: bool) -> torch.Tensor:
    """Rotate [tokens, ..., ROPE] of consecutive positions by YaRN's frequencies, in float64."""
    scale, original = YARN["scale"], YARN["original_max_positions"]
    pairs = ROPE // 2
    frequency = 500.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)

    def bound(turns: float) -> float:
        return ROPE * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(500.0))

    low = max(math.floor(bound(YARN["beta_fast"])), 0)
    high = min(math.ceil(bound(YARN["beta_slow"])), ROPE - 1)
    ramp = ((torch.arange(pairs) - low) / max(high - low, 0.001)).clamp(0, 1).double()
    frequency = frequency / scale * ramp + frequency * (1 - ramp)
    angle = torch.arange(len(x), dtype=torch.float64)[:, None] * frequency
    angle = angle.view(len(x), *[1] * (x.dim() - 2), pairs)
    magnitude = (0.07 * math.log(scale) + 1) / (0.13 * math.log(scale) + 1)
    first, second = (x[..., :pairs], x[..., pairs:]) if neox else (x[..., ::2], x[..., 1::2])
    one = first * angle.cos() - second * angle.sin()
    two = second * angle.cos() + first * angle.sin()
    both = torch.cat([one, two], -1) if neox else torch.stack([one, two], -1).flatten(-2)
    return both * magnitude


def formula(x: torch.Tensor, held: dict[str, torch.Tensor], lite: bool, neox: bool = False):
    """One sequence [tokens, HIDDEN] by the definition, head by head, in float64."""
    x = x.double()
    inner = x if lite else _normed(x @ held["q_a"].T, held["q_norm"])
    latent = _normed(x @ held["latent"].T, held["kv_norm"])
    shared = _turned(x @ held["shared"].T, neox)
    scale = (0.13 * math.log(YARN["scale"]) + 1) ** 2 / math.sqrt(NOPE + ROPE)
    hidden = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    heads = []
    for head in range(HEADS):
        q = inner @ held["q"][head].T
        k = latent @ held["k"][head].T
        scores = q[:, :NOPE] @ k.T + _turned(q[:, NOPE:], neox) @ shared.T
        weight = (scores * scale).masked_fill(hidden, -math.inf).softmax(-1)
        heads.append(weight @ (latent @ held["v"][head].T))
    return torch.cat(heads, -1) @ held["o"].T


class Session:
    """A layer with its cache: latents, or keys and values of so many heads and width."""

    def __init__(self, api, layer, config, backend: str, heads=None, **options) -> None:
        self.api, self.layer, self.options = api, layer, options
        kind = api.CacheType.SELFKONLY if heads is None else api.CacheType.SELF
        count, width = heads or (1, RANK + ROPE)
        size = 64 if backend == "VANILLA" else 8
        self.cache = api.KVCacheManager(
            api.KvCacheConfig(max_tokens=192, enable_block_reuse=False),
            kind,
            num_layers=1,
            num_kv_heads=count,
            head_dim=width,
            tokens_per_block=size,
            max_seq_len=64,
            max_batch_size=3,
            mapping=config.mapping,
            dtype=api.DataType.FLOAT,
        )
        self.cache.add_dummy_requests([0, 1, 2], [40, 40, 40])
        self.metadata = api.get_attention_backend(backend).Metadata(
            max_num_requests=3, max_num_tokens=128, kv_cache_manager=self.cache
        )
        self.done = {0: 0, 1: 0, 2: 0}

    def step(self, contexts, generations=()) -> list[torch.Tensor]:
        """Run (request, [tokens, HIDDEN]) pairs as one packed batch."""
        both = [*contexts, *generations]
        past = [self.done[request] for request, _ in both]
        lengths = [len(x) for _, x in both]
        md = self.metadata
        md.seq_lens = torch.tensor(lengths, dtype=torch.int)
        md.num_contexts = len(contexts)
        md.request_ids = [request for request, _ in both]
        md.prompt_lens = lengths
        md.kv_cache_params = self.api.KVCacheParams(use_cache=True, num_cached_tokens_per_seq=past)
        md.prepare()
        spans = [torch.arange(p, p + n) for p, n in zip(past, lengths, strict=True)]
        with torch.inference_mode():
            out = self.layer(
                position_ids=torch.cat(spans).unsqueeze(0),
                hidden_states=torch.cat([x for _, x in both]),
                attn_metadata=md,
                **self.options,
            )
        for request, x in both:
            self.done[request] += len(x)
        return list(out.split(lengths))


def follow(session: Session, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Prefill, chunks, decoding and mixed batches; each sequence's outputs [tokens, HIDDEN]."""
    a, b, c = inputs
    found: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}

    def step(contexts, generations=()):
        results = session.step(contexts, generations)
        for (request, _), out in zip([*contexts, *generations], results, strict=True):
            found[request].append(out)

    step([(0, a[:9]), (1, b[:23])])
    step([(0, a[9:20])], [(1, b[23:24])])  # a chunk that sees cached latents
    step([(2, c[:12])], [(0, a[20:21]), (1, b[24:25])])
    for at in range(6):
        step([], [(i, x[n + at : n + at + 1]) for i, x, n in ((0, a, 21), (1, b, 25), (2, c, 12))])
    return [torch.cat(found[request]) for request in (0, 1, 2)]


def sequences() -> list[torch.Tensor]:
    """Three sequences of the lengths that `follow` runs."""
    generator = torch.Generator().manual_seed(8)
    return [torch.randn(n, HIDDEN, generator=generator) for n in (27, 31, 18)]


def run_rank(rank: int, gen: str, lite: bool, compiler: str = "") -> list[torch.Tensor]:
    """In a process of a group of two: one rank's outputs, compiled if so asked."""
    case = Case(gen, lite=lite)
    api, layer, config = build(case, {"world_size": 2, "tp_size": 2, "rank": rank})
    fill(layer, weights(lite), 2, rank)
    if compiler:
        layer = torch.compile(layer, fullgraph=True, backend=compiler)
    return [x.numpy() for x in follow(Session(api, layer, config, "TRTLLM"), sequences())]
