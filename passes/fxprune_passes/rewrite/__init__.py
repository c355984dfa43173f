"""Passes that rewrite a program: they fold, fuse, merge and delete what its function does not need."""
