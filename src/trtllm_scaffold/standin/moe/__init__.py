"""Mixture of experts: routing, activations, expert weights, and the layer."""
