"""What a call does besides returning a value, and who else reads or writes a tensor."""
