"""Exact rewrites: the function of the program stays what it was."""
