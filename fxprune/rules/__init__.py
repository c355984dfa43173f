"""The rules that say how labels pass through ATen operators, in one file per family of operators."""
