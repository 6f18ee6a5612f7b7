"""A private decoder with latent attention, under names of its own, and forms that have no label."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from trtllm_scaffold.sources.hf_class import HFClasses

SIZES = {
    "vocab_size": 3200,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "question_squeeze": 192,
    "memory_squeeze": 160,
    "plain_width": 48,
    "spun_width": 24,
    "content_width": 40,
    "fuzz": 1e-4,
    "latent_fuzz": 3e-3,
}


class ForkConfig(PretrainedConfig):
    model_type = "latent-fork"

    def __init__(self, trick="", style="interleaved", rope_theta=5000.0, **kwargs):
        for name, value in SIZES.items():
            setattr(self, name, kwargs.pop(name, value))
        self.trick, self.style, self.rope_theta = trick, style, rope_theta
        super().__init__(**kwargs)


class Sieve(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.gain


def spin(x, config):
    """Rotates [batch, heads, sequence, width]; positions are second to last."""
    half = x.shape[-1] // 2
    speed = config.rope_theta ** (-torch.arange(half) / half)
    angle = torch.arange(x.shape[2])[:, None] * speed
    cos, sin = angle.cos(), angle.sin()
    if config.style == "neox":
        a, b = x[..., :half], x[..., half:]
    else:
        a, b = x[..., ::2], x[..., 1::2]
    pair = [a * cos - b * sin, b * cos + a * sin]
    return torch.cat(pair, -1) if config.style == "neox" else torch.stack(pair, -1).flatten(-2)


class Memory(nn.Module):
    """Latent attention."""

    def __init__(self, config):
        super().__init__()
        self.config, c = config, config
        heads, head = c.num_attention_heads, c.plain_width + c.spun_width
        self.ask = nn.Linear(c.hidden_size, c.question_squeeze, bias=False)
        self.ask_sieve = Sieve(c.question_squeeze, c.latent_fuzz)
        self.unask = nn.Linear(c.question_squeeze, heads * head, bias=False)
        self.squeeze = nn.Linear(c.hidden_size, c.spun_width + c.memory_squeeze, bias=False)
        self.sieve = Sieve(c.memory_squeeze, c.latent_fuzz)
        self.spread = nn.Linear(
            c.memory_squeeze, heads * (c.plain_width + c.content_width), bias=False
        )
        self.back = nn.Linear(heads * c.content_width, c.hidden_size, bias=False)
        if c.trick == "own shared key":
            self.aside = nn.Linear(c.hidden_size, c.spun_width, bias=False)
        if c.trick == "normed shared key":
            self.aside = Sieve(c.spun_width, c.fuzz)

    def forward(self, x):
        c, trick = self.config, self.config.trick
        batch, length = x.shape[:2]
        q = self.unask(self.ask_sieve(self.ask(x))).view(batch, length, c.num_attention_heads, -1)
        q = q.transpose(1, 2)
        widths = [c.plain_width, c.spun_width]
        if trick == "spun first":
            spun, plain = q.split(widths[::-1], -1)
        else:
            plain, spun = q.split(widths, -1)
        if trick == "shared key first":
            shared, latent = self.squeeze(x).split([c.spun_width, c.memory_squeeze], -1)
        else:
            latent, shared = self.squeeze(x).split([c.memory_squeeze, c.spun_width], -1)
        if trick.endswith("shared key"):
            shared = self.aside(x if trick.startswith("own") else shared)
        latent = latent * 1.0 if trick == "latent without norm" else self.sieve(latent)
        if trick == "scaled latent":
            latent = latent * 1.7
        both = self.spread(latent).view(batch, length, c.num_attention_heads, -1).transpose(1, 2)
        key, value = both.split([c.plain_width, c.content_width], -1)
        if trick == "value before key":
            value, key = both.split([c.content_width, c.plain_width], -1)
        shared = spin(shared[:, None], c).expand(-1, c.num_attention_heads, -1, -1)
        q, k = torch.cat([plain, spin(spun, c)], -1), torch.cat([key, shared], -1)
        scale = (c.plain_width if trick == "scale" else c.plain_width + c.spun_width) ** -0.5
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = (q @ k.transpose(2, 3) * scale).masked_fill(hidden, float("-inf")).softmax(-1)
        return self.back((weights @ value).transpose(1, 2).flatten(2))


class Feed(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.one = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.two = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.three = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.three(nn.functional.silu(self.one(x)) * self.two(x))


class Floor(nn.Module):
    def __init__(self, config, memory):
        super().__init__()
        self.memory, self.feed = memory, Feed(config)
        self.before, self.between = (Sieve(config.hidden_size, config.fuzz) for _ in range(2))

    def forward(self, x):
        x = x + self.memory(self.before(x))
        return x + self.feed(self.between(x))


class LatentForCausalLM(PreTrainedModel):
    config_class = ForkConfig
    _tied_weights_keys = {}

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        floors = range(config.num_hidden_layers)
        self.tower = nn.ModuleList([Floor(config, self.memory(index)) for index in floors])
        self.out = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def memory(self, index):
        """The attention of one floor."""
        return Memory(self.config)

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, use_cache=False, return_dict=True, **kwargs):
        x = self.words(input_ids)
        for floor in self.tower:
            x = floor(x)
        return CausalLMOutput(logits=self.out(x))


CLASSES = HFClasses(config_class=ForkConfig, model_class=LatentForCausalLM)


def raw(**changes):
    """A config.json of the fork."""
    kept = {k: v for k, v in ForkConfig(tie_word_embeddings=False).to_dict().items() if v != ""}
    return {**kept, "architectures": ["LatentForCausalLM"], **SIZES, **changes}
