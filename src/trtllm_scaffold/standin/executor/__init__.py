"""Executor half of the stand-in: the paged cache and the C++ names ports and tests use."""
