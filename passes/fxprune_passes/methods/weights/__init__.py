"""Individual weights set to 0: how many in each layer, and the masks that keep them there."""
