"""The command line, `fxprune`."""
