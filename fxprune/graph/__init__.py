"""The captured network: the program, its graph, the operands and sizes in it, its mode, gates and other leaf modules."""
