"""Tests of fxprune.verify.check."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
import torch

from fxprune.errors import VerifyError
from fxprune.verify import Batch, Check, compare_runs

BATCHES = [Batch((torch.arange(n, dtype=torch.float64),), {}, n) for n in (2, 5)]


def compare(wanted: Any, found: Any, batches: Any = BATCHES, **options: Any) -> Check:
    dtype = torch.float64
    return compare_runs(wanted, found, batches, dtype=dtype, against="the first", **options)


def test_the_worst_output_of_all_batches_is_named() -> None:
    check = compare(
        lambda x, _: [x[0], x[0] + 1],
        lambda x, _: [x[0], x[0] + 1 + (len(x[0]) > 2)],
    )
    assert (check.ok, check.max_relative_error, check.batches) == (False, 0.2, (2, 5))
    assert check.worst_output == "output 1 (batch 5, error 2.0e-01)"


def test_the_first_batch_that_does_not_agree_ends_it() -> None:
    check = compare(lambda x, _: [x[0]], lambda x, _: [x[0] + 1], until_bad=True)
    assert (check.ok, check.batches) == (False, (2,))
    assert compare(lambda x, _: [x[0]], lambda x, _: [x[0]], until_bad=True).batches == (2, 5)


def test_a_missing_output_is_infinitely_wrong() -> None:
    check = compare(lambda x, _: [x[0], x[0]], lambda x, _: [x[0]])
    assert (check.ok, check.max_relative_error) == (False, inf)
    assert check.worst_output.startswith("1 outputs in place of 2")


def test_both_runs_draw_the_same_numbers_and_get_their_own_inputs() -> None:
    def run(args: Any, _: Any) -> list[torch.Tensor]:
        return [args[0].add_(torch.rand(()))]

    assert compare(run, run).max_relative_error == 0
    assert torch.equal(BATCHES[0].args[0], torch.tensor([0.0, 1.0], dtype=torch.float64))


def only_two(args: Any, _: Any) -> list[torch.Tensor]:
    if len(args[0]) != 2:
        raise ValueError("another batch")
    return [args[0]]


def test_only_the_reference_may_refuse_and_only_a_second_batch() -> None:
    assert compare(only_two, lambda x, _: [x[0]], may_refuse=True).batches == (2,)
    for runs in ((lambda x, _: [x[0]], only_two), (only_two, only_two)):
        with pytest.raises(ValueError, match="another batch"):
            compare(*runs, may_refuse=runs[0] is not only_two)
    with pytest.raises(ValueError, match="another batch"):
        compare(only_two, only_two, BATCHES[1:], may_refuse=True)


def test_inputs_without_a_batch_are_not_given_one() -> None:
    check = compare(only_two, only_two, [BATCHES[0]._replace(size=None)])
    assert check.batches == ()
    assert "batch" not in f"{check} {check.worst_output}"


def test_a_reference_that_is_not_a_number_is_told_so() -> None:
    check = compare(*2 * [lambda x, _: [x[0], x[0] * torch.nan]])
    assert (check.ok, check.undefined) == (False, "output 1")
    assert "the first itself returns NaN: output 1" in str(check)
    with pytest.raises(VerifyError, match="the first itself returns NaN"):
        check.raise_if_bad()
