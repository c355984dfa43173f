"""What the benchmarks share: pairs of work that take turns, measured as ratios."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.stages import CLOCK, warm_up

Compare = Callable[..., dict[str, Any]]  # the fixture of this name


@pytest.fixture
def compare(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Compare:
    """Measures `work` in units of `reference`, whose result it is given.

    They take turns, so that what else the machine does falls on both; of each round the benchmark keeps the ratio.
    What is returned is the row of the page, for further facts.
    """

    def run(
        reference: Callable[[], Any],
        work: Callable[[Any], object],
        rounds: int,
        at_most: float | None = None,
    ) -> dict[str, Any]:
        units: list[float] = []

        def setup() -> tuple[tuple[Any], dict[str, Any]]:
            result = CLOCK.run_reference(reference)
            units.append(CLOCK.unit)
            return (result,), {}

        benchmark.pedantic(work, setup=setup, rounds=rounds, warmup_rounds=1)
        pairs = zip(units[1:], benchmark.stats.stats.data, strict=True)
        row: dict[str, Any] = benchmark.extra_info
        row |= {"case": request.node.callspec.id, "at most": at_most}
        row["reference ms"] = 1e3 * median(units[1:])
        row["ms"] = 1e3 * median(unit * ratio for unit, ratio in pairs)
        row["ratio"] = benchmark.stats.stats.median
        return row

    return run


@pytest.fixture(autouse=True)
def _settings(request: pytest.FixtureRequest) -> None:
    """The threads that a module asks for, and the clock that suits them."""
    threads = getattr(request.module, "THREADS", 1)
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    CLOCK.seconds = time.process_time if threads == 1 else time.perf_counter


@pytest.fixture(autouse=True, scope="session")
def _warm() -> None:
    warm_up()


def pytest_benchmark_scale_unit() -> tuple[str, float]:
    """What stands above pytest-benchmark's tables in place of seconds."""
    return "reference run", 1.0


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_compare_machine_info(
    machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> None:
    """The baseline has ratios, which are of no machine."""
    compared_benchmark["machine_info"] = machine_info
