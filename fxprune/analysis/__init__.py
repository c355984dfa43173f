"""The coupling analysis: solves the labels of a program, finds its groups, and explains them."""
