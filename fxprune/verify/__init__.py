"""Verification: two computations run on the same random inputs and held against each other, number by number."""
