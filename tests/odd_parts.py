"""A second private decoder with misleading names: parts that few published models have."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from trtllm_scaffold.sources.hf_class import HFClasses


class PartsConfig(PretrainedConfig):
    model_type = "odd-parts"

    def __init__(
        self,
        vocab_size=2200,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=5,
        num_attention_heads=8,
        max_position_embeddings=512,
        fuzz=1e-5,
        inner_fuzz=2e-5,
        ceiling=9.0,
        patience=700,
        appetite=0.3,
        brim=6.5,
        tilt=1.4,
        parts=(),
        **kwargs,
    ):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.intermediate_size, self.num_hidden_layers = intermediate_size, num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.fuzz, self.inner_fuzz, self.ceiling = fuzz, inner_fuzz, ceiling
        self.patience, self.appetite = patience, appetite
        self.brim, self.tilt = brim, tilt
        self.parts = list(parts)
        super().__init__(**kwargs)


class Scaler(nn.Module):
    """RMS norm."""

    def __init__(self, size, eps):
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Bend(nn.Module):
    """xIELU with plain numbers for constants, and its two slopes in the other order."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        low = 0.25 + functional.softplus(self.down)
        below = (torch.expm1(x.clamp(max=-1e-3)) - x) * low
        above = functional.softplus(self.up) * x.square()
        return torch.where(x > 0, above, below) + 0.25 * x


class Mill(nn.Module):
    """Attention without positions."""

    def __init__(self, config):
        super().__init__()
        size, self.heads, self.parts = (
            config.hidden_size,
            config.num_attention_heads,
            config.parts,
        )
        self.width = size // self.heads
        self.mlp = nn.Linear(size, 3 * size)  # all three projections
        self.norm = nn.Linear(size, size, bias=False)  # the last projection
        if "full gate" in self.parts:
            self.router = nn.Linear(size, size)
        if "head gate" in self.parts:
            self.router = nn.Linear(size, self.heads, bias=False)
        if "gate and head bias" in self.parts:
            self.router = nn.Linear(size, size, bias=False)
            self.scale = nn.Parameter(torch.zeros(self.heads))
        if "growing" in self.parts or "growing late" in self.parts:
            self.patience, self.appetite = config.patience, config.appetite
        if "output norm" in self.parts:
            self.out = Scaler(size, config.inner_fuzz)
        if "sinks" in self.parts:
            self.embed = nn.Parameter(torch.zeros(self.heads))
        if "norm per head" in self.parts:
            self.first = nn.ModuleList(self._norms(config))
            self.second = nn.ModuleList(self._norms(config))

    def _norms(self, config):
        return [
            nn.LayerNorm(self.width, eps=config.inner_fuzz, bias=False) for _ in range(self.heads)
        ]

    def _split(self, x):
        """Key, value and query rows in blocks; [batch, heads, sequence, width] each."""
        batch, length = x.shape[:2]
        count = self.heads if "a block per head" in self.parts else 2
        blocks = self.mlp(x).view(batch, length, count, 3, self.heads // count, self.width)
        key, value, query = blocks.unbind(3)
        return [p.flatten(2, 3).transpose(1, 2) for p in (query, key, value)]

    def forward(self, x):
        query, key, value = self._split(x)
        if "norm per head" in self.parts:
            query = torch.stack([n(h) for n, h in zip(self.first, query.unbind(1), strict=True)], 1)
            key = torch.cat([n(h) for n, h in zip(self.second, key.split(1, 1), strict=True)], 1)
        if "growing" in self.parts or "growing late" in self.parts:
            places = torch.arange(x.shape[1]) + ("growing" in self.parts)
            query = query * ((1 + places / self.patience) ** self.appetite)[:, None]
        scores = query @ key.transpose(2, 3) * self.width**-0.5
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(mask, float("-inf"))
        out = scores.softmax(-1) @ value
        if "sinks" in self.parts:
            total = scores.logsumexp(-1, keepdim=True)
            out = out * (total - self.embed[:, None, None]).sigmoid()
        if "head gate" in self.parts:
            out = out * functional.softplus(self.router(x)).transpose(1, 2)[..., None]
        out = out.transpose(1, 2)
        if "gate and head bias" in self.parts:
            out = out * (self.router(x).view_as(out) + self.scale[:, None]).sigmoid()
        out = out.flatten(2)
        if "full gate" in self.parts:
            out = self.router(x).sigmoid() * out
        if "wrong gate" in self.parts:
            out = out * out.mean(-1, keepdim=True).sigmoid()
        if "output norm" in self.parts:
            out = self.out(out)
        return self.norm(out)


class Floor(nn.Module):
    def __init__(self, config, place):
        super().__init__()
        size, self.parts = config.hidden_size, config.parts
        self.place = place
        bounded = {"bounded", "bounded far"} & set(self.parts)
        inner = config.intermediate_size * (2 if bounded else 1)
        self.lm_head, self.attention = Mill(config), nn.Linear(size, inner)
        self.brim, self.tilt = config.brim, config.tilt
        self.query = nn.Linear(config.intermediate_size, size)
        self.act = Bend() if "xielu" in self.parts else nn.GELU()
        self.alpha, self.beta = Scaler(size, config.fuzz), Scaler(size, config.fuzz)
        if "down norm" in self.parts:
            self.gamma = Scaler(config.intermediate_size, config.inner_fuzz)

    def forward(self, hidden_states):
        x = hidden_states
        if {"settling", "settling unevenly"} & set(self.parts):
            return self._settle(x)
        y = self.alpha(x)
        h = (y if "normed residual" in self.parts else x) + self.lm_head(y)
        y = self.beta(h)
        inner = self._inner(self.attention(y))
        if "down norm" in self.parts:
            inner = self.gamma(inner)
        return (y if "normed residual" in self.parts else h) + self.query(inner)

    def _inner(self, x):
        if "bounded far" in self.parts:
            up, gate = x.clamp(max=900.0).chunk(2, -1)
            return functional.silu(gate) * up.clamp(min=-900.0)
        if "bounded" in self.parts:
            up, gate = x.chunk(2, -1)
            gate = torch.minimum(gate, torch.tensor(self.brim))
            return (
                gate / (1 + torch.exp(-self.tilt * gate)) * (up.clip(-self.brim, self.brim) + 0.5)
            )
        return self.act(x)

    def _settle(self, x):
        count = 3 * self.place + 4
        h = x * (1 - 1 / count) ** 0.5 + self.lm_head(self.alpha(x)) * count**-0.5
        if "settling unevenly" in self.parts:
            count += self.place**2
        y = self.query(self.act(self.attention(self.beta(h))))
        return h * (count / (count + 1)) ** 0.5 + y / (count + 1) ** 0.5


class PartsForCausalLM(PreTrainedModel):
    config_class = PartsConfig
    _tied_weights_keys = {}

    def __init__(self, config):
        super().__init__(config)
        size, self.parts = config.hidden_size, config.parts
        rows = config.vocab_size + 1 if "more rows" in self.parts else config.vocab_size
        self.tower = nn.ModuleList([Floor(config, i) for i in range(config.num_hidden_layers)])
        self.softmax = nn.Embedding(rows, size)
        self.rotary = nn.Linear(size, config.vocab_size, bias="head bias" in self.parts)
        if "embedding norm" in self.parts:
            self.top = Scaler(size, config.inner_fuzz)
        if "dense head" in self.parts:
            self.left, self.right = nn.Linear(size, size), Scaler(size, config.inner_fuzz)
        self.bottom = Scaler(size, config.fuzz)
        self.post_init()

    def get_input_embeddings(self):
        return self.softmax

    def forward(self, input_ids, use_cache=False, return_dict=True, **kwargs):
        x = self.softmax(input_ids)
        if "embedding norm" in self.parts:
            x = self.top(x)
        for floor in self.tower:
            x = floor(x)
        x = self.bottom(x)
        if "dense head" in self.parts:
            x = self.right(functional.silu(self.left(x)))
        logits = self.rotary(x)
        if "softcap" in self.parts:
            logits = self.config.ceiling * torch.tanh(logits / self.config.ceiling)
        return CausalLMOutput(logits=logits)


CLASSES = HFClasses(config_class=PartsConfig, model_class=PartsForCausalLM)


def raw(*parts):
    """A config.json of the fork."""
    plain = {"architectures": ["PartsForCausalLM"], "model_type": "odd-parts"}
    defaults = PartsConfig(tie_word_embeddings=False, parts=parts).to_dict()
    return {**{k: v for k, v in defaults.items() if v is not None}, **plain}
