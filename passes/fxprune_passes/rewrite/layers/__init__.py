"""Convolutions and linear layers in one form: their geometry, weights and cost."""
