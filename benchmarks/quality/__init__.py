"""What is left of the quality of real networks, by criterion, by depth, and beside Torch-Pruning."""
