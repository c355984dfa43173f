"""Operators that move, split, join or average numbers, and where a vector lies afterwards."""
