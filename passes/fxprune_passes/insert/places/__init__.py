"""Where in a graph gates, observers and shortcuts go."""
