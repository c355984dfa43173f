"""How a program with gates runs: without what closed gates make idle, and with gates in vectors instead of maps."""
