from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fxprune.testing.rules import check_rule
from fxprune.testing.sample import Sample

GOLDEN = Path(__file__).parent / "golden_timid.json"
Judge = Callable[[Sample], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write what rules are timid about"
    )


@pytest.fixture(scope="session")
def judge(request: pytest.FixtureRequest) -> Iterator[Judge]:
    """Checks a rule, and that it is timid where the golden file says so and nowhere else."""
    golden: dict[str, list[str]] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    update = request.config.getoption("--update-golden", default=False)
    found = dict(golden)

    def check(sample: Sample) -> None:
        found[str(sample)] = check_rule(sample)
        assert update or found[str(sample)] == golden.get(str(sample), []), (
            "timid: pytest tests/rules --update-golden"
        )

    yield check
    if update:
        timid = {k: v for k, v in sorted(found.items()) if v}
        GOLDEN.write_text(json.dumps(timid, indent=1) + "\n")
