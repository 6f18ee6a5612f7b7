"""Many families at once: render and prove a small instance of each, and keep the score."""
