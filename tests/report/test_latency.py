"""Measured latency: two programs in turn."""

from functools import partial
from itertools import count

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import OptionError
from fxprune.graph.program import Program
from fxprune.process import stopwatch
from fxprune.report.latency import Latency, compare_latency


def linear(width: int) -> Program:
    return fp.capture(nn.Linear(width, width), (torch.randn(2, width),))


def test_smaller_program_is_faster() -> None:
    wide = fp.capture(nn.Linear(512, 4096), (torch.randn(256, 512),))
    small = fp.shrink(wide, fp.plan(wide, []))
    found = compare_latency(wide, small, rounds=3)
    assert found.rounds == 3
    assert min(found.before, found.after, found.ratio) > 0


def test_on_one_thread_only_the_time_of_that_thread_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {"thread_time": count(step=0.001), "perf_counter": count(step=1.0)}
    for name, clock in clocks.items():
        monkeypatch.setattr(stopwatch, name, partial(next, clock))
    for threads, milliseconds in ((1, 1), (2, 1000)):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        assert compare_latency(linear(4), linear(4)).before == pytest.approx(milliseconds)


def test_mode_is_put_back() -> None:
    program = linear(4).train()
    compare_latency(program, linear(4), rounds=1)
    assert program.training


def test_no_rounds_is_an_error() -> None:
    with pytest.raises(OptionError, match="rounds=0"):
        compare_latency(linear(4), linear(4), rounds=0)


def test_text_says_how_much_faster() -> None:
    text = str(Latency(10.0, 5.0, 0.5, 15, 2))
    assert text.startswith("latency 10.0 ms -> 5.0 ms, 2.00 times as fast")
