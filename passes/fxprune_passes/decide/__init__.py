"""Passes that say which units go."""
