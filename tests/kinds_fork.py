"""A private decoder whose layers differ by rules of its own, under names of its own."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from trtllm_scaffold.sources.hf_class import HFClasses


class KindsConfig(PretrainedConfig):
    """`rules` are Python expressions over the configuration `c` and the layer `i`."""

    model_type = "kinds-fork"
    attribute_map = {
        "hidden_size": "breadth",
        "num_hidden_layers": "floors",
        "num_attention_heads": "eyes",
    }

    def __init__(self, breadth=128, floors=3, eyes=4, rules=None, **kwargs):
        self.breadth, self.floors, self.eyes = breadth, floors, eyes
        self.rules = rules or {}
        super().__init__(**kwargs)


def rule(config, name, index, default):
    """What a rule says of a layer."""
    text = config.rules.get(name)
    return default if text is None else eval(text, {"c": config, "i": index})


class Rms(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def turn(x, theta):
    """Rotates [batch, heads, sequence, head_dim], first half against second."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2])[:, None] * theta ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class Floor(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.config, self.index = config, index
        size = config.breadth
        self.heads = rule(config, "heads", index, config.eyes)
        self.shared = rule(config, "shared", index, self.heads)
        key = size // config.eyes
        value = rule(config, "value", index, key)
        widths = (self.heads * key, self.shared * key, self.shared * value)
        self.q, self.k, self.v = (nn.Linear(size, width, bias=False) for width in widths)
        self.o = nn.Linear(self.heads * value, size, bias=False)
        sinks = rule(config, "sinks", index, False)
        self.drain = nn.Parameter(torch.randn(self.heads)) if sinks else None
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        bare = rule(config, "bare", index, False)
        self.before = nn.Identity() if bare else Rms(size)
        self.between = Rms(size)

    def attend(self, x):
        config, index = self.config, self.index
        batch, length, size = x.shape
        q, k, v = (
            part(x).view(batch, length, heads, -1).transpose(1, 2)
            for part, heads in ((self.q, self.heads), (self.k, self.shared), (self.v, self.shared))
        )
        k, v = (part.repeat_interleave(self.heads // self.shared, 1) for part in (k, v))
        v = v * rule(config, "louder", index, 1.0)
        theta = rule(config, "base", index, None)
        if theta:
            q, k = turn(q, theta), turn(k, theta)
        scale = rule(config, "scale", index, (size // config.eyes) ** -0.5)
        scores = q @ k.transpose(2, 3) * scale
        distance = torch.arange(length)[:, None] - torch.arange(length)
        slopes = rule(config, "slopes", index, None)
        if slopes:
            scores = scores - torch.tensor(slopes)[:, None, None] * distance.clamp(min=0)
        hidden = distance < 0
        window = rule(config, "window", index, None)
        if window:
            hidden = hidden | (distance >= window)
        scores = scores.masked_fill(hidden, float("-inf"))
        if self.drain is not None:
            drain = self.drain.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, drain], -1)
        weights = scores.softmax(-1)[..., :length]
        return self.o((weights @ v).transpose(1, 2).reshape(batch, length, -1))

    def forward(self, x):
        x = x + self.attend(self.before(x))
        return x + self.down(functional.relu(self.up(self.between(x))))


class KindsForCausalLM(PreTrainedModel):
    config_class = KindsConfig
    _tied_weights_keys = {}

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.breadth)
        self.tower = nn.ModuleList([Floor(config, i) for i in range(config.floors)])
        self.last = Rms(config.breadth)
        self.read = nn.Linear(config.breadth, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, use_cache=False, return_dict=True, **kwargs):
        x = self.words(input_ids)
        table = rule(self.config, "table", 0, None)
        if table:
            x = x + sines(table, *x.shape[1:])
        for floor in self.tower:
            x = floor(x)
        return CausalLMOutput(logits=self.read(self.last(x)))


def sines(table, length, width):
    """[length, width]; `table` is (layout, base, offset)."""
    layout, base, offset = table
    angle = (torch.arange(length) + offset)[:, None] / base ** (torch.arange(0, width, 2) / width)
    if layout == "concatenated":
        return torch.cat([angle.sin(), angle.cos()], -1)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


CLASSES = HFClasses(config_class=KindsConfig, model_class=KindsForCausalLM)


def raw(rules, **keys):
    """A config.json of the fork: 12 layers, 8 heads."""
    plain = {"architectures": ["KindsForCausalLM"], "model_type": "kinds-fork"}
    sizes = {"breadth": 512, "floors": 12, "eyes": 8, "vocab_size": 3200}
    sizes |= {"max_position_embeddings": 2048, "tie_word_embeddings": False}
    return {**plain, **sizes, "rules": rules, **keys}


def press(heads, bias):
    """ALiBi's slopes by the paper's own recursion, for any number of heads."""
    power = 2 ** (heads.bit_length() - 1)
    slopes = [2.0 ** (-bias * (j + 1) / power) for j in range(power)]
    return slopes if power == heads else slopes + press(2 * power, bias)[::2][: heads - power]
