"""Branches that are multiplied by 0: following the 0 through the graph and removing them."""
