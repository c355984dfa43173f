"""The captured network: the program and its graph, operands and sizes, its mode, gates and other leaf modules."""
