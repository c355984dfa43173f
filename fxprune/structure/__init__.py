"""The structure of a captured graph: residual blocks, linear regions, activations, and what depends on what."""
