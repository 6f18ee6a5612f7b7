"""A hand-written mistral port; importing it registers the model."""

from .modeling_mistral import MistralForCausalLM

__all__ = ["MistralForCausalLM"]
