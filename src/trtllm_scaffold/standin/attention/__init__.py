"""Attention of the stand-in: metadata, backends, kernel, modules."""
