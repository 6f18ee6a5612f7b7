"""A proven port, laid out as a patch against TensorRT-LLM's own tree.

`module` makes one model file of the port's package, `literals` and `unit_test` the test, `tree`
finds and writes the rows of registration and of the support matrix, `patch` puts them together.
"""
