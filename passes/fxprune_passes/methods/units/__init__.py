"""Units under neuron importance: their ranks, and how many are removed in each round."""
