"""Passes that work something out."""
