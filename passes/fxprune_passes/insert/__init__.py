"""Passes that put gates, observers and shortcuts into a graph."""
