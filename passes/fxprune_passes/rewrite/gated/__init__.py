"""Gates at 0: what they switch off, and what can go without a change of the function."""
