"""What a method measures during training: counts of chosen steps, loss and accuracy."""
