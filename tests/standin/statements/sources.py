"""What the keys of the sources stand for."""

from __future__ import annotations

#: Key -> file of NVIDIA/TensorRT-LLM and version; "(c)": version told by its content.
SOURCES: dict[str, str] = {
    "ATT-mid": "tensorrt_llm/_torch/modules/attention.py @00547a25",
    "ATT-new": "tensorrt_llm/_torch/attention/attention.py @047098b7",
    "GUIDE": "tensorrt_llm/_torch/modules/ATTENTION_DEVELOPER_GUIDE.md @0df2b8b8",
    "IF-12": "tensorrt_llm/_torch/attention_backend/interface.py @51ea5c96",
    "IF-26": "the same file, mid 2026 (c)",
    "VAN-12": "tensorrt_llm/_torch/attention_backend/vanilla.py, 1.2 era (c)",
    "VAN-26": "the same file, 2026 (c)",
    "TRT-26": "tensorrt_llm/_torch/attention_backend/trtllm.py, mid 2026 (c)",
    "FI-12": "tensorrt_llm/_torch/attention_backend/flashinfer.py, 1.2 era (c)",
    "FI-26": "the same file, mid 2026 (c)",
    "THOP-12": "cpp/tensorrt_llm/thop/attentionOp.cpp, 1.2 era (c)",
    "FMHA-26": "parameter schema of the attention kernels, late 2026 (c)",
    "CPP-OP": "C++ attention op and decode kernel launcher (c)",
    "BK-TEST": "backend selection test under tests/unittest/_torch, late 2026 (c)",
    "QKN-25": "tensorrt_llm/_torch/modules/qk_norm_attention.py, end of 2025 (c)",
    "QKN-new": "tensorrt_llm/_torch/attention/qk_norm_attention.py @8b1bb33d",
    "ROT-new": "tensorrt_llm/_torch/attention/rotary_embedding.py @047098b7",
    "FUNC": "tensorrt_llm/functional.py, two versions (c)",
    "RMS-25": "tensorrt_llm/_torch/modules/rms_norm.py @0419019a",
    "LN-26": "tensorrt_llm/_torch/modules/layer_norm.py @0a871d39",
    "GMLP-12": "tensorrt_llm/_torch/modules/gated_mlp.py, 1.2 era (c)",
    "MLP-26": "tensorrt_llm/_torch/modules/mlp.py @01664808",
    "EMB": "tensorrt_llm/_torch/modules/embedding.py @06d0733f",
    "LIN": "tensorrt_llm/_torch/modules/linear.py, several versions (c)",
    "MU-12": "tensorrt_llm/_torch/models/modeling_utils.py, 1.2 era (c)",
    "MU-26": "the same file, late 2026 (c)",
    "MAP": "tensorrt_llm/_torch/models/checkpoints/base_weight_mapper.py @0c8de69a, "
    "hf/weight_mapper.py @088aa36b",
    "KV-12": "tensorrt_llm/_torch/pyexecutor/resource_manager.py, 1.2 era (c)",
    "UTIL-26": "tensorrt_llm/_torch/pyexecutor/_util.py, mid 2026 (c)",
    "PYX": "tensorrt_llm/_torch/pyexecutor/py_executor_creator.py (c)",
    "ARCH": "tensorrt_llm/_torch/models/_arch_index.py @065ff9e9",
    "OPT": "examples/llm-api/out_of_tree_example",
    "DOC-ADD": "docs/source/models/adding-new-model.md @83ab45a5",
    "DOC-ATT": "docs/source/features/attention.md @30d2c50c",
    "DOC-SUP": "docs/source/models/supported-models.md @00b6d5a2",
}
