"""Units that always hold the same number: finding them, removing them, keeping what they contribute."""
