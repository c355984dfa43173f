"""Labels of axes, the units they refer to, and how unions, splits and merges act on them. Needs no torch."""
