"""Passes that insert, set and remove gates, observers and shortcuts."""
