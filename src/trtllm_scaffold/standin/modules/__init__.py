"""Layers of the stand-in: linear, embedding, norms, MLPs, rotary, decoder layer."""
