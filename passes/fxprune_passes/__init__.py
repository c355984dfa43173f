"""The passes of the fxprune wheel: fxprune finds them by entry point and never imports them."""
