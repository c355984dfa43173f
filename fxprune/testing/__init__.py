"""Test tools for rules, passes and networks, which fxprune's own tests use too."""
