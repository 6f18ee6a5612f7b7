"""A private decoder whose names mislead on purpose, with switches for every kind of structure."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from trtllm_scaffold.sources.hf_class import HFClasses


class OddConfig(PretrainedConfig):
    model_type = "odd-fork"

    def __init__(
        self,
        vocab_size=211,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=64,
        rope_theta=10000.0,
        tiny_epsilon=1e-5,
        branch_gain=1.0,
        sliding_window=None,
        block="pre",
        norm="rms",
        rope="neox",
        qk_norm=None,
        layout="separate",
        act="silu",
        gate="first",
        trick=None,
        **kwargs,
    ):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.intermediate_size, self.num_hidden_layers = intermediate_size, num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim, self.max_position_embeddings = head_dim, max_position_embeddings
        self.rope_theta, self.tiny_epsilon = rope_theta, tiny_epsilon
        self.branch_gain, self.sliding_window = branch_gain, sliding_window
        self.block, self.norm, self.rope, self.qk_norm = block, norm, rope, qk_norm
        self.layout, self.act, self.gate, self.trick = layout, act, gate, trick
        super().__init__(**kwargs)


class Dropout(nn.Module):
    """A norm, whatever its name says."""

    def __init__(self, size, config):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))
        self.kind, self.eps = config.norm, config.tiny_epsilon

    def forward(self, x):
        if self.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x * (1 + self.bias)


def spin(x, config):
    """Rotates [batch, heads, sequence, head_dim]."""
    half = x.shape[-1] // 2
    theta = 777.0 if config.trick == "own theta" else config.rope_theta
    speed = theta ** (-torch.arange(half) / half)
    angle = torch.arange(x.shape[2])[:, None] * speed
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    if config.rope == "neox":
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    a, b = x[..., ::2], x[..., 1::2]
    pairs = [a * cos - b * sin, b * cos + a * sin]
    if config.rope == "deinterleaving":
        return torch.cat(pairs, -1)
    if config.rope == "reversed":
        pairs = [a * cos + b * sin, b * cos - a * sin]
    return torch.stack(pairs, -1).flatten(-2)


class Mixer(nn.Module):
    """Attention; the projection called values makes queries, and so on."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        q = config.num_attention_heads * config.head_dim
        kv = config.num_key_value_heads * config.head_dim
        if config.layout == "separate":
            self.values = nn.Linear(config.hidden_size, q, bias=False)
            self.queries = nn.Linear(config.hidden_size, kv)
            self.keys = nn.Linear(config.hidden_size, kv, bias=False)
        else:
            self.out = nn.Linear(config.hidden_size, q + 2 * kv)
        self.gate_proj = nn.Linear(q, config.hidden_size, bias=False)
        if config.qk_norm:
            self.a = Dropout(config.head_dim, config)
            self.b = Dropout(config.head_dim, config)
        if "blocks" in (config.trick or ""):
            width = config.index_head_dim
            self.heads = nn.Linear(config.hidden_size, config.index_n_heads * width, bias=False)
            self.topk = nn.Linear(config.hidden_size, width, bias=False)
            self.c, self.d = Dropout(width, config), Dropout(width, config)

    def blocks(self, x, hidden):
        """0 for the keys in the blocks with the best scores, -inf for all others."""
        config, size, length = self.config, self.config.index_block_size, x.shape[1]
        far = float("-inf")
        q = self.c(self.heads(x).unflatten(-1, (config.index_n_heads, -1)).transpose(1, 2))
        k = self.d(self.topk(x))[:, None]
        products = spin(q, config) @ spin(k, config).transpose(2, 3)
        products = functional.pad(products.masked_fill(hidden, far), (0, -length % size), value=far)
        parts = products.unflatten(-1, (-1, size))
        best = parts.logsumexp(-1) if config.trick == "soft blocks" else parts.amax(-1)
        own, every = torch.arange(length)[:, None] // size, torch.arange(best.shape[-1])
        near = (every <= own) & (every > own - config.index_local_blocks)
        picks = best.masked_fill(near, -far).topk(config.index_topk_blocks, -1)[1]
        seen = torch.zeros_like(best).scatter(-1, picks, 1.0)
        seen = seen.repeat_interleave(size, -1)[..., :length]
        if config.trick == "late blocks":  # a block is seen from its second key on
            seen = functional.pad(seen, (1, 0))[..., :length]
        share = config.num_attention_heads // config.index_n_heads
        seen = seen.repeat_interleave(share, 1)
        return torch.zeros_like(seen).masked_fill((seen == 0) | hidden, far)

    def split(self, x):
        config = self.config
        heads, groups, width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        batch, length = x.shape[:2]
        if config.layout == "separate":
            parts = self.values(x), self.queries(x), self.keys(x)
            return [p.view(batch, length, -1, width).transpose(1, 2) for p in parts]
        mixed = self.out(x)
        if config.layout == "values_first":
            sizes = [groups * width, heads * width, groups * width]
            v, q, k = mixed.split(sizes, -1)
            return [p.view(batch, length, -1, width).transpose(1, 2) for p in (q, k, v)]
        mixed = mixed.view(batch, length, groups, heads // groups + 2, width)
        q = mixed[:, :, :, :-2].flatten(2, 3)
        if config.layout == "across":  # query heads of one group lie far apart
            q = mixed[:, :, :, :-2].transpose(2, 3).flatten(2, 3)
        return [p.transpose(1, 2) for p in (q, mixed[:, :, :, -2], mixed[:, :, :, -1])]

    def forward(self, x, residual):
        config = self.config
        q, k, v = self.split(x)
        if config.qk_norm == "before":
            q, k = self.a(q), self.b(k)
        if config.rope != "none":
            q, k = spin(q, config), spin(k, config)
        if config.qk_norm == "after":
            q, k = self.a(q), self.b(k)
        if config.trick == "fused kernel":
            out = functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=0.3, enable_gqa=True
            )
            return residual + config.branch_gain * self.gate_proj(out.transpose(1, 2).flatten(2))
        share = config.num_attention_heads // config.num_key_value_heads
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        scores = (q * config.head_dim**-0.25) @ (k * config.head_dim**-0.25).transpose(2, 3)
        row, column = torch.arange(x.shape[1])[:, None], torch.arange(x.shape[1])
        hidden = column > row
        if config.trick == "looks ahead":
            hidden = column > row + 1
        if config.sliding_window:
            hidden = hidden | (column <= row - config.sliding_window)
        if "blocks" in (config.trick or ""):
            scores = scores + self.blocks(x, hidden)
        else:
            scores = scores.masked_fill(hidden, float("-inf"))
        weights = scores.softmax(-1)
        out = (weights @ v).transpose(1, 2).flatten(2)
        if config.trick == "output gate":
            out = out * x.mean(-1, keepdim=True).sigmoid()
        branch = self.gate_proj(out)
        return branch if residual is None else residual + config.branch_gain * branch


class Router(nn.Module):
    """A gated feed-forward with both first projections in one matrix."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.down = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.up = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        gate, up = self.down(x).chunk(2, -1)
        if self.config.gate == "second":
            gate, up = up, gate
        if self.config.act == "softplus":
            return self.up(functional.softplus(gate) * up)
        return self.up(getattr(functional, self.config.act)(gate) * up)


class Floor(nn.Module):
    """One layer; the attention adds the residual itself."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.softmax, self.mlp = Mixer(config), Router(config)
        self.lm_head = Dropout(config.hidden_size, config)
        self.rotary = Dropout(config.hidden_size, config)

    def forward(self, hidden_states):
        x, block, gain = hidden_states, self.config.block, self.config.branch_gain
        if block == "pre":
            h = self.softmax(self.lm_head(x), x)
            return h + gain * self.mlp(self.rotary(h))
        if block == "post":
            h = self.rotary(self.softmax(x, x))
            return self.lm_head(h + gain * self.mlp(h))
        if block == "parallel":
            return self.softmax(self.lm_head(x), x) + gain * self.mlp(self.rotary(x))
        if block == "shared":
            y = self.rotary(x)
            return self.softmax(y, x) + gain * self.mlp(y)
        if block == "branch_output":
            h = x + gain * self.lm_head(self.softmax(x, None))
            return h + gain * self.rotary(self.mlp(h))
        if block == "normed residual":
            y = self.lm_head(x)
            h = self.softmax(y, y)
            return h + gain * self.mlp(self.rotary(h))
        raise NotImplementedError(block)


class OddForCausalLM(PreTrainedModel):
    config_class = OddConfig
    _tied_weights_keys = {}

    def __init__(self, config):
        super().__init__(config)
        self.tower = nn.ModuleList([Floor(config) for _ in range(config.num_hidden_layers)])
        self.layers = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.layers

    def forward(self, input_ids, use_cache=False, return_dict=True, **kwargs):
        x = self.layers(input_ids)
        for floor in self.tower:
            x = floor(x)
        return CausalLMOutput(logits=self.embed(x))


CLASSES = HFClasses(config_class=OddConfig, model_class=OddForCausalLM)


def raw(**changes):
    """A config.json of the fork."""
    plain = {"architectures": ["OddForCausalLM"], "model_type": "odd-fork"}
    defaults = OddConfig(tie_word_embeddings=False).to_dict()
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "head_dim": 64, "vocab_size": 3200}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 6}
    sizes |= {"max_position_embeddings": 2048}
    kept = {k: v for k, v in defaults.items() if v is not None}
    return {**kept, **plain, **sizes, **changes}
