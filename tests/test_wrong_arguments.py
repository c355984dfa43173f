"""Arguments of a wrong kind are named by an error of fxprune's, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune as fp
from fxprune.errors import CaptureError, OptionError, PlanError


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


NEEDS_A_PROGRAM: dict[str, Callable[[Any], object]] = {
    "groups": fp.groups,
    "explain": lambda x: fp.explain(x, "0.weight", 0),
    "summary": fp.summary,
    "compare": lambda x: fp.compare(x, x),
    "plan": lambda x: fp.plan(x, []),
    "shrink": lambda x: fp.shrink(x, x),
    "verify": lambda x: fp.verify(x, x, x),
    "save": lambda x: fp.save(x, "never-written"),
}


@pytest.mark.parametrize("value", [None, "plan.json"])
def test_what_is_no_plan_is_named(value: Any) -> None:
    with pytest.raises(OptionError, match=rf"not a {type(value).__name__}\n.*fp\.Plan\.load"):
        fp.apply_to_shards(value, "never-read", "never-written")


@pytest.mark.parametrize("value", [None, network(), "net"], ids=["None", "module", "text"])
@pytest.mark.parametrize("verb", NEEDS_A_PROGRAM)
def test_what_is_no_program_is_named(verb: str, value: object) -> None:
    with pytest.raises(OptionError, match=type(value).__name__) as error:
        NEEDS_A_PROGRAM[verb](value)
    assert "fp.capture" in error.value.do
    assert not Path("never-written").exists()


@pytest.mark.parametrize(
    "options",
    [
        *({"keep": x} for x in ("a", [0.5], {"macs": 0.5}, float("nan"))),
        *({"ignore": x} for x in ("fc", None, 3, (None,))),
        *({name: x} for name in ("multiple_of", "at_least") for x in (1.5, "8", None, 0)),
        *({"importance": x} for x in (3, len)),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as error:
        fp.prune(network(), torch.randn(2, 4), **({"keep": 0.5} | options))
    assert error.value.do


@pytest.mark.parametrize("steps", [None, 3, [3]], ids=str)
def test_what_is_no_pipeline_is_named(steps: Any) -> None:
    with pytest.raises(OptionError, match="is no pipeline"):
        fp.run(network(), torch.randn(2, 4), steps)


@pytest.mark.parametrize(
    "removed",
    [
        *(None, 3, "0.weight", {"0.weight": 0}, {"0.weight": (0, None)}),
        *({"0.weight": (0, [1.5])}, {"0.weight": ("0", [1])}, {"0.weight": (0, slice(2))}),
    ],
    ids=str,
)
def test_what_is_no_removal_is_named(removed: Any) -> None:
    with pytest.raises(PlanError) as error:
        fp.plan(fp.capture(network(), torch.randn(2, 4)), removed)
    assert error.value.do


@pytest.mark.parametrize("verb", [fp.capture, lambda m, x, k: fp.prune(m, x, k, keep=0.5)])
def test_keywords_that_are_no_mapping_are_named(verb: Callable[..., object]) -> None:
    with pytest.raises(CaptureError, match="kwargs is a list"):
        verb(network(), torch.randn(2, 4), [1])
