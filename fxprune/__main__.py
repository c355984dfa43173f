"""Runs the command line as `python -m fxprune`."""

from fxprune.cli.main import main

if __name__ == "__main__":
    main()
