"""Triton kernels for 16-bit tensors on a GPU; every one has a formula in plain torch beside it."""
