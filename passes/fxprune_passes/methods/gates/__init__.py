"""Stochastic gates with learned probabilities: sampling, gradients and removal."""
