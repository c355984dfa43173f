"""The steps of fuse-linear, one way to fuse layers in each file."""
