"""The command line: `fxprune summary|groups|prune|explain|verify|passes`."""
