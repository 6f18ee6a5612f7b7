"""A private decoder whose latent attention sees chosen keys, and choices that have no label."""

from __future__ import annotations

import mla_fork
import torch
from torch import nn

from trtllm_scaffold.sources.hf_class import HFClasses

SIZES = {"pick_heads": 136, "pick_width": 152, "pick_count": 700, "pick_fuzz": 2e-3}


class PickConfig(mla_fork.ForkConfig):
    model_type = "pick-fork"

    def __init__(self, pick_style="neox", door="", **kwargs):
        for name, value in SIZES.items():
            setattr(self, name, kwargs.pop(name, value))
        self.pick_style, self.door = pick_style, door
        super().__init__(**kwargs)


def spin_first(x, config):
    """Rotates the first `spun_width` numbers of [batch, heads, sequence, width]."""
    half = config.spun_width // 2
    speed = config.rope_theta ** (-torch.arange(half) / half)
    angle = torch.arange(x.shape[2])[:, None] * speed
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    pair = torch.complex(*(turned.unflatten(-1, (2, half)).unbind(-2)))
    if config.pick_style != "neox":
        pair = torch.complex(turned[..., ::2], turned[..., 1::2])
    cos, sin = angle.cos(), angle.sin()
    real, imag = pair.real * cos - pair.imag * sin, pair.imag * cos + pair.real * sin
    if config.pick_style == "neox":
        return torch.cat([real, imag, rest], -1)
    return torch.cat([torch.stack([real, imag], -1).flatten(-2), rest], -1)


class Picker(nn.Module):
    """Chooses keys."""

    def __init__(self, config):
        super().__init__()
        self.config, c = config, config
        self.quiz = nn.Linear(c.question_squeeze, c.pick_heads * c.pick_width, bias=False)
        self.mark = nn.Linear(c.hidden_size, c.pick_width, bias=c.trick == "bias")
        self.level = nn.LayerNorm(c.pick_width, eps=c.pick_fuzz)
        self.voice = nn.Linear(c.hidden_size, c.pick_heads, bias=False)

    def forward(self, x, asked):
        c, trick = self.config, self.config.trick
        batch, length = x.shape[:2]
        q = self.quiz(asked).view(batch, length, c.pick_heads, c.pick_width).transpose(1, 2)
        k = self.level(self.mark(x))[:, None]
        if trick != "unspun":
            q, k = spin_first(q, c), spin_first(k, c)
        products = q @ k.transpose(2, 3) * 0.37
        products = products.abs() if trick == "absolute" else products.relu()
        voice = self.voice(x).sigmoid() if trick == "sigmoid" else self.voice(x)
        scores = torch.einsum("bsh,bhst->bst", voice, products)
        if trick == "least":
            scores = -scores
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        if trick == "future":
            later = torch.zeros_like(later)
        scores = scores.masked_fill(later, float("-inf"))
        chosen = scores.topk(length if trick == "all" else min(c.pick_count, length), -1).indices
        soft = -3.0 if trick == "soft" else float("-inf")
        mask = torch.full_like(scores, soft).scatter(-1, chosen, 0.0)
        return mask.masked_fill(torch.ones_like(later).triu(1), float("-inf"))[:, None]


class PickMemory(mla_fork.Memory):
    """Latent attention to the keys that it chooses."""

    def __init__(self, config):
        super().__init__(config)
        self.picker = Picker(config)
        c = config
        if c.door:  # one projection of queries and gates, from the latent as it is and normed
            width = c.plain_width + c.spun_width + (1 if c.door == "narrow" else c.content_width)
            read = c.question_squeeze * (1 if c.door == "one latent" else 2)
            self.unask = nn.Linear(read, c.num_attention_heads * width, bias=False)

    def forward(self, x):
        c = self.config
        batch, length = x.shape[:2]
        raw = self.ask(x)
        asked = self.ask_sieve(raw)
        both = [raw, asked] if c.door == "raw first" else [asked, raw]
        both[1] = 2.0 * both[1] if c.door == "scaled" else both[1]
        read = torch.cat(both, -1) if c.door not in ("", "one latent") else asked
        q = self.unask(read).view(batch, length, c.num_attention_heads, -1).transpose(1, 2)
        plain, spun, gate = q.tensor_split([c.plain_width, c.plain_width + c.spun_width], -1)
        latent, shared = self.squeeze(x).split([c.memory_squeeze, c.spun_width], -1)
        both = self.spread(self.sieve(latent)).view(batch, length, c.num_attention_heads, -1)
        key, value = both.transpose(1, 2).split([c.plain_width, c.content_width], -1)
        shared = mla_fork.spin(shared[:, None], c).expand(-1, c.num_attention_heads, -1, -1)
        q, k = torch.cat([plain, mla_fork.spin(spun, c)], -1), torch.cat([key, shared], -1)
        scores = q @ k.transpose(2, 3) * (c.plain_width + c.spun_width) ** -0.5
        weights = (scores + self.picker(x, raw if c.door == "raw index" else asked)).softmax(-1)
        seen = weights @ (value * gate.sigmoid() if c.door == "before" else value)
        if c.door not in ("", "before"):
            seen = seen * (gate.tanh() if c.door == "tanh" else gate.sigmoid())
        return self.back(seen.transpose(1, 2).flatten(2))


class PickForCausalLM(mla_fork.LatentForCausalLM):
    config_class = PickConfig

    def memory(self, index):
        return PickMemory(self.config)


CLASSES = HFClasses(config_class=PickConfig, model_class=PickForCausalLM)


def raw(**changes):
    """A config.json of the fork."""
    kept = {k: v for k, v in PickConfig(tie_word_embeddings=False).to_dict().items() if v != ""}
    sizes = {**mla_fork.SIZES, **SIZES}
    return {**kept, "architectures": ["PickForCausalLM"], **sizes, **changes}
