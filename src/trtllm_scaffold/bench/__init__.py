"""Times a port on the stand-in against HF, with the same weights, side by side in one run."""
