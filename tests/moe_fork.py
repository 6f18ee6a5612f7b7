"""A private decoder of experts whose names mislead, with switches for what must be refused."""

from __future__ import annotations

import torch
from odd_fork import OddConfig, OddForCausalLM, raw
from torch import nn
from torch.nn import functional

from trtllm_scaffold.sources.hf_class import HFClasses


class CrowdConfig(OddConfig):
    model_type = "crowd-fork"
    attribute_map = {"num_experts": "branches"}

    def __init__(self, branches=8, picks=2, branch_width=96, boost=1.3, crowd="plain", **kwargs):
        self.branches, self.picks, self.branch_width = branches, picks, branch_width
        self.boost, self.crowd = boost, crowd
        super().__init__(**kwargs)


class Norm(nn.Module):
    """One expert; `down` makes up, `bias` the gate."""

    def __init__(self, config):
        super().__init__()
        self.down = nn.Linear(config.hidden_size, config.branch_width)
        self.bias = nn.Linear(config.hidden_size, config.branch_width, bias=False)
        last = nn.Linear(config.branch_width, config.hidden_size, bias=False)
        self.router = nn.Sequential(nn.Identity(), last)  # a number of its own in the name
        self.crowd = config.crowd

    def forward(self, x):
        gate = self.bias(x)
        if self.crowd == "softplus experts":
            return self.router(functional.softplus(gate) * self.down(x))
        return self.router(functional.gelu(gate, approximate="tanh") * self.down(x))


class Crowd(nn.Module):
    """Sigmoid scores, sorted, renormalised with a term, times `boost`; experts in a list."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        extra = 1 if config.crowd == "identity" else 0
        self.expert = nn.Linear(config.hidden_size, config.branches + extra)
        self.shift = nn.Parameter(torch.zeros(config.branches))
        self.gates = nn.ModuleList([Norm(config) for _ in range(config.branches)])
        self.state = self.trail = None

    def logits(self, x):
        config, flat = self.config, x.flatten(0, 1)
        logits = self.expert(flat)
        if config.crowd == "carried" and self.trail is not None:  # from layer to layer
            logits = logits + sum(self.trail)
            self.trail.append(logits)
        if config.crowd == "state":  # of the call before
            before, self.state = self.state, logits.mean(0, keepdim=True)
            logits = logits if before is None else logits + before
        if config.crowd == "content":
            logits = logits + flat[:, :1].sin()
        if config.crowd == "token before":
            logits = logits + self.expert(x.roll(1, 1).flatten(0, 1))
        return logits

    def forward(self, x):
        config, flat, logits = self.config, x.flatten(0, 1), self.logits(x)
        scores = logits.sigmoid()
        if config.crowd == "softmax of squares":
            scores = logits.square().softmax(-1)
        choice = scores if config.crowd == "identity" else scores + self.shift
        if config.crowd == "bias on logits":
            choice = logits + self.shift
        if config.crowd == "bias on squares":
            choice = scores.square() + self.shift
        if config.crowd.startswith("groups masked to "):
            fill = float(config.crowd.removeprefix("groups masked to ").replace("zero", "0"))
            grouped = choice.unflatten(-1, (2, -1))
            best = grouped.amax(-1, keepdim=True)
            choice = torch.where(best == best.amax(-2, keepdim=True), grouped, fill).flatten(-2)
        picked = choice.sort(-1, descending=True).indices[:, : config.picks]
        weights = scores.gather(-1, picked)
        power = 2 if config.crowd == "length" else 1
        total = weights.pow(power).sum(-1, keepdim=True).pow(1 / power)
        weights = weights / (total + 1e-6) * config.boost
        out = torch.zeros_like(flat)
        for number, branch in enumerate(self.gates):
            token, place = torch.where(picked == number)
            if config.crowd == "every expert":  # runs on every token
                share = torch.zeros_like(flat[:, :1]).index_add(
                    0, token, weights[token, place, None]
                )
                out = out + branch(flat) * share
            elif len(token):
                out[token] += branch(flat[token]) * weights[token, place, None]
        if config.crowd == "identity":
            token, place = torch.where(picked == config.branches)
            out[token] += flat[token] * weights[token, place, None]
        return out.view_as(x)


class CrowdForCausalLM(OddForCausalLM):
    config_class = CrowdConfig

    def __init__(self, config):
        super().__init__(config)
        for floor in self.tower:
            floor.mlp = Crowd(config)

    def forward(self, *args, **kwargs):
        trail = []
        for floor in self.tower:
            floor.mlp.trail = trail
        result = super().forward(*args, **kwargs)
        for floor in self.tower:
            floor.mlp.trail = None
        return result


CLASSES = HFClasses(config_class=CrowdConfig, model_class=CrowdForCausalLM)


def crowd(**changes):
    """A config.json of the fork."""
    names = {"architectures": ["CrowdForCausalLM"], "model_type": "crowd-fork"}
    own = {"branches": 6, "picks": 2, "branch_width": 72, "boost": 1.3, "crowd": "plain"}
    small = {"hidden_size": 128, "head_dim": 24, "num_hidden_layers": 3}
    return {**raw(), **names, **small, **own, **changes}
