"""Labels of axes, the units they name, and what unions, splits and merges do to them. Needs no torch."""
