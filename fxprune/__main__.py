"""Lets `python -m fxprune` stand for `fxprune`."""

from fxprune.cli.main import main

if __name__ == "__main__":
    main()
