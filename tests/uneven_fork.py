"""A private decoder whose layers have latents of two sizes, and forms near it without a label."""

from __future__ import annotations

import mla_fork
import torch
from mla_fork import Sieve
from torch import nn
from transformers import PretrainedConfig

from trtllm_scaffold.sources.hf_class import HFClasses

#: Sizes of layers that see all keys they choose, and of those with a window.
FAR = {
    "voices": 8,
    "question_squeeze": 208,
    "memory_squeeze": 164,
    "plain_width": 136,
    "spun_width": 132,
    "content_width": 140,
}
NEAR = {
    "near_voices": 4,
    "near_question_squeeze": 176,
    "near_memory_squeeze": 224,
    "near_plain_width": 168,
    "near_spun_width": 144,
    "near_content_width": 160,
}
SIZES = {
    "vocab_size": 3200,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "max_position_embeddings": 2048,
    **FAR,
    **NEAR,
    "reach": 9,
    "pick_heads": 296,
    "pick_width": 152,
    "pick_count": 10,
    "fuzz": 1e-4,
    "key_fuzz": 3e-3,
}


class UnevenConfig(PretrainedConfig):
    model_type = "uneven-fork"
    attribute_map = {"num_attention_heads": "voices"}

    def __init__(self, trick="", floors=None, own_sizes=None, **kwargs):
        for name, value in SIZES.items():
            setattr(self, name, kwargs.pop(name, value))
        plan = ["far", "near", "near"] * self.num_hidden_layers
        self.floors = list(floors or plan[: self.num_hidden_layers])
        self.trick, self.own_sizes = trick, own_sizes
        super().__init__(**kwargs)


def spin(x, width, base):
    """Rotates the first numbers of [batch, heads, sequence, ...], neighbours together."""
    speed = base ** (-torch.arange(width // 2) / (width // 2))
    angle = torch.arange(x.shape[2])[:, None] * speed
    turned, rest = x[..., :width], x[..., width:]
    a, b = turned[..., ::2], turned[..., 1::2]
    pair = [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]
    return torch.cat([torch.stack(pair, -1).flatten(-2), rest], -1)


class Picker(nn.Module):
    def __init__(self, config, question, spun):
        super().__init__()
        self.config, c, self.spun = config, config, spun
        self.quiz = nn.Linear(question, c.pick_heads * c.pick_width, bias=False)
        self.mark = nn.Linear(c.hidden_size, c.pick_width, bias=False)
        self.level = nn.LayerNorm(c.pick_width, eps=c.fuzz)
        self.voice = nn.Linear(c.hidden_size, c.pick_heads, bias=False)

    def forward(self, x, asked):
        c = self.config
        q = self.quiz(asked).unflatten(-1, (c.pick_heads, c.pick_width)).transpose(1, 2)
        k = self.level(self.mark(x))[:, None]
        q, k = (spin(item, self.spun, 5000.0) for item in (q, k))
        scores = torch.einsum("bsh,bhst->bst", self.voice(x), (q @ k.transpose(2, 3)).relu())
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
        chosen = scores.topk(min(c.pick_count, x.shape[1]), -1).indices
        mask = torch.full_like(scores, float("-inf")).scatter(-1, chosen, 0.0)
        return mask.masked_fill(later, float("-inf"))[:, None]


class Memory(nn.Module):
    """Latent attention with two sizes, whose latents are scaled and whose output is gated."""

    def __init__(self, config, index):
        super().__init__()
        self.config, c = config, config
        self.near = c.floors[index] == "near"
        sizes = [getattr(c, f"near_{name}" if self.near else name) for name in FAR]
        if c.own_sizes:
            own = c.own_sizes.get(str(index), {})
            sizes = [own.get(name, getattr(c, name)) for name in FAR]
        self.heads, question, memory, self.plain, self.spun, self.content = sizes
        self.memory, trick = memory, c.trick
        self.ask = nn.Linear(c.hidden_size, question, bias=False)
        self.ask_sieve, self.sieve = Sieve(question, c.fuzz), Sieve(memory, c.fuzz)
        self.unask = nn.Linear(question, self.heads * (self.plain + self.spun), bias=False)
        self.squeeze = nn.Linear(c.hidden_size, memory + self.spun, bias=False)
        self.key_sieve = Sieve(self.spun, c.key_fuzz)
        self.spread = nn.Linear(memory, self.heads * (self.plain + self.content), bias=False)
        rows = self.heads * (self.content if trick == "wide gate" else 1)
        self.valve = nn.Linear(c.hidden_size, rows, bias=False)
        self.back = nn.Linear(self.heads * self.content, c.hidden_size, bias=False)
        self.ask_factor = (c.hidden_size / question) ** 0.5
        self.factor = 1.0 if trick == "one scale" else (c.hidden_size / memory) ** 0.5
        if trick == "late scale":
            self.factor = self.factor if c.hidden_size > 400 else 1.0
        self.picker = None if self.near or trick == "open" else Picker(c, question, self.spun)

    def forward(self, x):
        c, trick = self.config, self.config.trick
        length, base = x.shape[1], 900.0 if self.near else 5000.0
        bare = self.ask_sieve(self.ask(x))
        asked = bare * self.ask_factor
        q = self.unask(asked).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        plain, spun = q.split([self.plain, self.spun], -1)
        latent, shared = self.squeeze(x).split([self.memory, self.spun], -1)
        latent = self.sieve(latent) * self.factor
        shared = shared[:, None]
        if trick == "sieved last":
            shared = self.key_sieve(spin(shared, self.spun, base))
        else:
            shared = spin(self.key_sieve(shared), self.spun, base)
        both = self.spread(latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = both.split([self.plain, self.content], -1)
        q = torch.cat([plain, spin(spun, self.spun, base)], -1)
        k = torch.cat([key, shared.expand(-1, self.heads, -1, -1)], -1)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        if self.near:
            later = later | torch.ones(length, length, dtype=torch.bool).tril(-c.reach)
        if self.picker is None:
            mask = torch.zeros(length, length).masked_fill(later, float("-inf"))
        else:
            mask = self.picker(x, bare if trick == "bare picker" else asked)
        scores = q @ k.transpose(2, 3) * (self.plain + self.spun) ** -0.5
        seen = ((scores + mask).softmax(-1) @ value).transpose(1, 2)
        valve = self.valve(x).unflatten(-1, (self.heads, -1))
        if trick == "late gate":
            return self.back(seen.flatten(2)) * self.valve(x).sigmoid().mean(-1, keepdim=True)
        opened = valve.tanh() if trick == "tanh" else valve.sigmoid()
        if trick == "soft gate":
            opened = nn.functional.softplus(valve)
        if trick == "gate by output":
            opened = seen.mean(-1, keepdim=True).sigmoid()
        return self.back((seen * opened).flatten(2))


class UnevenForCausalLM(mla_fork.LatentForCausalLM):
    config_class = UnevenConfig

    def memory(self, index):
        return Memory(self.config, index)


CLASSES = HFClasses(config_class=UnevenConfig, model_class=UnevenForCausalLM)


def raw(**changes):
    """A config.json of the fork."""
    told = UnevenConfig(tie_word_embeddings=False).to_dict()
    kept = {k: v for k, v in told.items() if v != "" and k != "floors"}
    return {**kept, "architectures": ["UnevenForCausalLM"], **SIZES, **changes}
