"""Which units and branches the gates of a program have switched off."""
