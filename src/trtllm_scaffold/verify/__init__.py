"""The proof: what shows that a port is right, from reading it to running it against HF."""
