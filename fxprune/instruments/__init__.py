"""Instruments: timing, printing, verification, bisection, reproducers."""
