"""Small models written by hand against the TensorRT-LLM API, as a port's author would."""
