"""What a captured graph is built of."""
