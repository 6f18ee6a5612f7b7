"""Faults that people make when they port a model, each as an edit of the sample port."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

SAMPLE = Path(__file__).parent / "sample_port"
MODELING = "mistral_port/modeling_mistral.py"
WEIGHTS = "mistral_port/weights_mistral.py"
IMPORTS = "mistral_port/_trtllm.py"


@dataclass(frozen=True)
class Fault:
    """Replace `old` by `new` (once) in `file`; the checks whose name starts so must fail."""

    name: str
    file: str
    old: str
    new: str
    caught_by: str
    says: str = ""


#: Caught by reading the port.
STATIC = (
    Fault(
        "unknown import path",
        IMPORTS,
        "from tensorrt_llm._torch.modules.rms_norm import RMSNorm",
        "from tensorrt_llm._torch.modules.norms import RMSNorm",
        "contract",
        "it is in tensorrt_llm._torch.modules.rms_norm",
    ),
    Fault(
        "path of the other generation only",
        IMPORTS,
        "except ImportError:\n    from tensorrt_llm._torch.modules.attention import Attention",
        "except ImportError:\n    from tensorrt_llm._torch.attention.attention import Attention",
        "contract 1.2",
        "tensorrt_llm._torch.modules.attention",
    ),
    Fault(
        "alternative that no generation has",
        IMPORTS,
        "except ImportError:\n    from tensorrt_llm._torch.modules.attention import Attention",
        "except ImportError:\n    from tensorrt_llm._torch.modules.attn import Attention",
        "contract",
        "exists in no known generation",
    ),
    Fault(
        "unknown symbol",
        IMPORTS,
        "from tensorrt_llm._torch.modules.gated_mlp import GatedMLP",
        "from tensorrt_llm._torch.modules.gated_mlp import GatedMlp as GatedMLP",
        "contract",
        "GatedMlp",
    ),
    Fault(
        "import outside the one module",
        MODELING,
        "import torch\n",
        "import torch\nfrom tensorrt_llm.mapping import Mapping\n",
        "contract",
        "import it in _trtllm.py",
    ),
    Fault("wrong keyword", MODELING, "rms_norm_eps, dtype", "rms_norm_eps, data_type", "contract",
          "RMSNorm has no parameter 'data_type'"),
    Fault(
        "missing required keyword",
        MODELING,
        "        self.norm = RMSNorm(\n            hidden_size=config.hidden_size, eps",
        "        self.norm = RMSNorm(\n            eps",
        "contract",
        "RMSNorm needs 'hidden_size'",
    ),
    Fault(
        "keyword of super().__init__",
        MODELING,
        "dense_bias=False,",
        "out_bias=False,",
        "contract",
        "Attention has no parameter 'out_bias'",
    ),
    Fault(
        "keyword of super().forward",
        MODELING,
        "attention_window_size=self.window",
        "window_size=self.window",
        "contract",
        "Attention.forward has no parameter 'window_size'",
    ),
    Fault(
        "positional arguments",
        MODELING,
        "config.hidden_size,\n            dtype=config.torch_dtype,\n            mapping",
        "config.hidden_size,\n            config.torch_dtype,\n            mapping",
        "contract",
        "by keyword",
    ),
    Fault(
        "unknown enum member",
        MODELING,
        "PositionEmbeddingType.rope_gpt_neox",
        "PositionEmbeddingType.rope_neox",
        "contract",
        "no member 'rope_neox'",
    ),
    Fault(
        "override without **kwargs",
        MODELING,
        "def forward(self, position_ids, hidden_states, attn_metadata, residual=None, **kwargs):",
        "def forward(self, position_ids, hidden_states, attn_metadata, residual=None):",
        "contract",
        "must accept **kwargs",
    ),
    Fault(
        "call of a module with an unknown keyword",
        MODELING,
        'self.mlp(hidden_states, lora_params=kwargs.get("lora_params"))',
        'self.mlp(hidden=hidden_states, lora_params=kwargs.get("lora_params"))',
        "contract",
        "GatedMLP.forward",
    ),
    Fault(
        "name that the sibling lacks",
        MODELING,
        "import canonicalize\n",
        "import canonical\n",
        "contract",
        "defines no 'canonical'",
    ),
    Fault(
        "missing weight row",
        WEIGHTS,
        '    "model.layers.{i}.mlp.up_proj.weight": ("model.layers.{i}.mlp.up_proj.weight",),\n',
        "",
        "load",
        "nothing in WEIGHTS fills model.layers.{i}.mlp.up_proj.weight",
    ),
    Fault(
        "parameter filled twice",
        WEIGHTS,
        '("model.layers.{i}.mlp.up_proj.weight",)',
        '("model.layers.{i}.mlp.gate_proj.weight",)',
        "load",
        "fills model.layers.{i}.mlp.gate_proj.weight twice",
    ),
    Fault(
        "misspelt stored name",
        WEIGHTS,
        '"model.norm.weight": (',
        '"model.final_norm.weight": (',
        "load",
        "the checkpoint stores model.norm.weight",
    ),
    Fault(
        "rows of another part",
        WEIGHTS,
        "    return (tensor,)",
        '    return (tensor[: len(tensor) // 2],) if "k_proj" in name else (tensor,)',
        "load",
        "k_proj.weight becomes",
    ),
    Fault(
        "elements used twice",
        WEIGHTS,
        "    return (tensor,)",
        "    half = tensor.shape[0] // 2\n"
        '    if "up_proj" in name:\n'
        "        tensor = tensor.copy()\n"
        "        tensor[:half] = tensor[half : 2 * half]\n"
        "    return (tensor,)",
        "load",
        "are used twice",
    ),
    Fault("torch at module level", WEIGHTS, "WEIGHTS: dict", "import torch\n\nWEIGHTS: dict",
          "load", "imports torch"),
    Fault("crash in the port's function", WEIGHTS, "    return (tensor,)", "    return 1 / 0",
          "load", "ZeroDivisionError"),
    Fault("no reason for a dropped tensor", WEIGHTS, '"rotary tables are computed"', '""',
          "load", "gives no reason"),
)  # fmt: skip

#: Caught by running the port.
DYNAMIC = (
    Fault(
        "wrong rope style",
        MODELING,
        "type=PositionEmbeddingType.rope_gpt_neox,\n                rope=rope_params(config),\n"
        "                is_neox=True",
        "type=PositionEmbeddingType.rope_gptj,\n                rope=rope_params(config),\n"
        "                is_neox=False",
        "parity fp32 prefill",
        "model.layers.0.self_attn",
    ),
    Fault(
        "rope style of the unfused path only",
        MODELING,
        "is_neox=True",
        "is_neox=False",
        "parity fp32 prefill",
        "VANILLA",
    ),
    Fault(
        "swapped k and v",
        WEIGHTS,
        '("model.layers.{i}.self_attn.k_proj.weight",),\n'
        '    "model.layers.{i}.self_attn.v_proj.weight": '
        '("model.layers.{i}.self_attn.v_proj.weight",)',
        '("model.layers.{i}.self_attn.v_proj.weight",),\n'
        '    "model.layers.{i}.self_attn.v_proj.weight": '
        '("model.layers.{i}.self_attn.k_proj.weight",)',
        "parity fp32 prefill",
        "model.layers.0.self_attn",
    ),
    Fault(
        "missing window",
        MODELING,
        'self.window = getattr(config, "sliding_window", None)',
        "self.window = None",
        "parity fp32 prefill",
        "model.layers.0.self_attn",
    ),
    Fault(
        "window off by one",
        MODELING,
        "attention_window_size=self.window,",
        "attention_window_size=self.window and self.window - 1,",
        "parity fp32 decode",
        "model.layers.0.self_attn",
    ),
    Fault(
        "norm order",
        MODELING,
        "hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)\n"
        "        hidden_states = self.mlp(hidden_states, "
        'lora_params=kwargs.get("lora_params"))',
        "hidden_states = self.mlp(hidden_states, "
        'lora_params=kwargs.get("lora_params"))\n'
        "        hidden_states, residual = "
        "self.post_attention_layernorm(hidden_states, residual)",
        "parity fp32 prefill",
        "model.layers.0",
    ),
    Fault(
        "wrong epsilon",
        MODELING,
        "eps=config.rms_norm_eps",
        "eps=1e-6",
        "parity fp32 prefill",
        "model.layers.0.input_layernorm",
    ),
    Fault(
        "wrong theta",
        MODELING,
        "theta=theta",
        "theta=10000.0",
        "parity fp32 prefill",
        "model.layers.0.self_attn",
    ),
    Fault(
        "wrong softmax scale",
        MODELING,
        "            dense_bias=False,",
        "            dense_bias=False,\n            q_scaling=1.1,",
        "parity fp32 prefill",
        "model.layers.0.self_attn",
    ),
    Fault(
        "forgotten final norm",
        MODELING,
        "hidden_states, _ = self.norm(hidden_states, residual)",
        "hidden_states = hidden_states + residual",
        "parity fp32 prefill",
        "model.norm",
    ),
    Fault(
        "gate and up exchanged",
        WEIGHTS,
        '("model.layers.{i}.mlp.gate_proj.weight",),\n'
        '    "model.layers.{i}.mlp.up_proj.weight": ("model.layers.{i}.mlp.up_proj.weight",)',
        '("model.layers.{i}.mlp.up_proj.weight",),\n'
        '    "model.layers.{i}.mlp.up_proj.weight": ("model.layers.{i}.mlp.gate_proj.weight",)',
        "parity fp32 prefill",
        "model.layers.0.mlp",
    ),
    Fault(
        "scale that only bf16 loses",
        MODELING,
        "inputs_embeds = self.embed_tokens(input_ids)",
        "inputs_embeds = self.embed_tokens(input_ids)\n"
        "            if inputs_embeds.dtype == torch.bfloat16:\n"
        "                inputs_embeds = (inputs_embeds * 1.02).to(inputs_embeds.dtype)",
        "parity bf16",
        "RMS error",
    ),
    Fault(
        "lora parameters lost on the way",
        MODELING,
        "                lora_params=lora_params,\n",
        "",
        "LoRA threading",
        "model.layers.0.self_attn",
    ),
    Fault(
        "embedding whole on every rank",
        MODELING,
        "            mapping=model_config.mapping,\n"
        "            tensor_parallel_mode=TensorParallelMode.COLUMN,\n"
        "            gather_output=True,\n",
        "",
        "parity fp32 prefill",
        "tie_word_embeddings",
    ),
    Fault(
        "layer called without the residual keyword",
        MODELING,
        "                residual=residual,\n                lora_params",
        "                **({'residual': residual} if residual is not None else {}),\n"
        "                lora_params",
        "parallel PP 2",
        "too many values to unpack",
    ),
    Fault(
        "state computed in the constructor",
        MODELING,
        "        self.window = getattr",
        '        self.register_buffer("scale", torch.empty(1).fill_(1.0), persistent=False)\n'
        "        self.window = getattr",
        "meta initialisation",
        "fall back",
    ),
    Fault(
        "registered under another name",
        MODELING,
        '@register_auto_model("MistralForCausalLM")',
        '@register_auto_model("MistralPort")',
        "registration",
        "MistralForCausalLM",
    ),
    Fault(
        "model not imported by the package",
        "mistral_port/__init__.py",
        "from .modeling_mistral import MistralForCausalLM\n\n"
        '__all__ = ["MistralForCausalLM"]',
        "",
        "registration",
        "MistralForCausalLM",
    ),
    Fault("crash in forward", MODELING, "        hidden_states, residual = inputs_embeds, None",
          "        hidden_states, residual = inputs_embeds[0, 0, 0], None",
          "parity fp32 prefill", "modeling_mistral.py:"),
    Fault("does not import", MODELING, "import torch\n", "import torch\n\nundefined_name\n",
          "import", "modeling_mistral.py:"),
)  # fmt: skip


def seed(fault: Fault, folder: Path) -> Path:
    """A copy of the sample port with `fault` in it."""
    port = copy_sample(folder)
    edit(port / fault.file, fault.old, fault.new)
    return port


def copy_sample(folder: Path) -> Path:
    """A copy of the sample port."""
    port = folder / "port"
    shutil.copytree(SAMPLE, port, ignore=shutil.ignore_patterns("__pycache__"))
    return port


def edit(path: Path, old: str, new: str) -> None:
    """Replace `old`, which must occur, by `new` in the file `path`."""
    text = path.read_text()
    assert old in text, f"{path.name} has no {old!r}"
    path.write_text(text.replace(old, new))


def edit_json(path: Path, **values: object) -> None:
    """Set top-level keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
