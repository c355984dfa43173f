"""What fxprune's own tests use, for rules, passes and networks of others too."""
