"""Passes that select the units and branches to remove."""
