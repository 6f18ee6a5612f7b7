"""From a HuggingFace config.json to a proven TensorRT-LLM port."""

__version__ = "0.1.1"
