"""Which state of the project was measured."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """The commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    root = Path(__file__).resolve().parent
    found = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    return found.stdout.strip()
