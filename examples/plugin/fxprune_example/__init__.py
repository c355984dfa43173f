"""A plugin of fxprune, in four files: an operator, its rule, a criterion and a pass."""
