"""Replicas and shards give what one process gives on the whole batch: losses, removals, weights, states."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fxprune.testing.processes import run_group

cases, own_class, shards = (
    SimpleNamespace(**run_path(str(Path(__file__).with_name(f"{name}.py"))))
    for name in ("cases", "own_class", "shards")
)
RUNS = [(n, e, name) for n in (2, 4) for e in ("ddp", "fsdp") for name in cases.names(e, n)]

# Torch says so whether it is told or not.
ALONE = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


def several(count: int, folder: Path) -> list[Any]:
    """What each process of a group computes; the group runs all of its cases once, even if it fails."""
    own = folder / str(count)
    if not own.exists():
        own.mkdir()
        script = Path(__file__).with_name("run.py")
        run_group(script, str(own), str(folder / "checkpoint"), count=count)
    return [torch.load(own / f"{rank}.pt") for rank in range(count)]


@cache
def alone(name: str) -> Any:
    """What one process computes."""
    return cases.run_case(name, "alone")


def assert_tensors(found: dict[str, torch.Tensor], one: dict[str, torch.Tensor]) -> None:
    assert found.keys() == one.keys()
    for name in one:
        torch.testing.assert_close(found[name], one[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", cases.CASES)
def test_a_part_is_removed(name: str) -> None:
    sizes = alone(name)["sizes"]
    assert (sizes[-1] < 393) != (name == "go back"), sizes


@pytest.mark.parametrize(("count", "engine", "name"), RUNS)
def test_several_processes_are_one(count: int, engine: str, name: str, folder: Path) -> None:
    one = alone(name)
    for other in several(count, folder):
        found = other[f"{engine}: {name}"]
        assert found["sizes"] == one["sizes"]
        assert found["losses"] == pytest.approx(one["losses"], abs=1e-9, rel=0)
        assert_tensors(found["tensors"], one["tensors"])


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    ("engine", "uneven"),
    [("tensor parallel", False), ("fsdp", True)],
    ids=["parallel", "fsdp"],
)
def test_own_class(count: int, engine: str, uneven: bool, folder: Path) -> None:
    """A model of the user's own class, tensor parallel or under FSDP layer by layer."""
    one = own_class.alone(uneven)
    for other in several(count, folder):
        found = other["models"][engine]
        assert found["losses"] == pytest.approx(one["losses"], abs=1e-9, rel=0)
        assert_tensors(found["tensors"], one["tensors"])


@ALONE
def test_a_checkpoint_of_two_is_read_by_one_and_by_four(folder: Path) -> None:
    several(2, folder)
    one = own_class.alone(True)
    found = own_class.read_checkpoint(
        folder / "checkpoint" / "model", lambda model: None, own_class.UNEVEN, lambda x: x
    )
    for other in [found, *(four["models"]["read"] for four in several(4, folder))]:
        assert_tensors(other["at six"], one["at six"])
        assert_tensors(other["tensors"], one["tensors"])


@ALONE
def test_a_checkpoint_of_a_shrinker_is_read_by_one_and_by_four(folder: Path) -> None:
    two = several(2, folder)
    one = shards.write_checkpoint("alone", None)
    found = shards.read_checkpoint("alone", folder / "checkpoint" / "shrinker")
    records = [*(p["written"] for p in two), found, *(p["read"] for p in several(4, folder))]
    for other in records:
        assert_tensors(other, one)
