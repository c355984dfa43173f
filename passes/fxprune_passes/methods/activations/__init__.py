"""Activation functions under entropy-guided pruning: their weights, and their removal."""
