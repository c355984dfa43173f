"""One rule per ATen operator, in one file per family; importing `table` loads them all."""
