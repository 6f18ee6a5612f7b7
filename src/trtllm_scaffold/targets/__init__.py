"""TensorRT-LLM generations as data: API contracts and capabilities."""
