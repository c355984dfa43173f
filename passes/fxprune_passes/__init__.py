"""The passes and training-time methods of fxprune, which finds passes by entry point and never imports them."""
