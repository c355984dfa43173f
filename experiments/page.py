from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "docs" / "results.md"


def write(store): ...
