"""Passes that analyse a program without changing it."""
