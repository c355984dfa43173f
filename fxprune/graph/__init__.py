"""What a captured network is: the program, its nodes, operands, sizes and modes, and the modules that stand in it."""
