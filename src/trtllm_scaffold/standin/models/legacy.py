"""Names of the engine builder's package that weight mappers annotate with."""

from __future__ import annotations


class DecoderModelForCausalLM:
    """Never made here: the engine builder's class of this name."""
