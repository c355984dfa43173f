"""A scale and a shift of every channel, and the adjacent layer that can absorb them."""
