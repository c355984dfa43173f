"""DistributedDataParallel over two gloo processes, with Bernoulli gates and observers in the graph."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fxprune as fp
from fxprune.testing.processes import run_group

REPLICAS = Path(__file__).with_name("replicas.py")
PUT_IN = (
    "insert-gates{kind=bernoulli} | insert-gates{scope=unit kind=bernoulli} | set-gates{value=0.7}"
    " | insert-observers | insert-observers{stat=mean} | insert-observers{stat=max}"
)


def test_replicas_stay_equal_and_compute_what_one_process_does(
    costly_network: Any, tmp_path: Path
) -> None:
    """One launch for all that is checked: starting processes takes longer than the checks."""
    module = fp.run(costly_network.small, None, PUT_IN).program.module
    x = costly_network.batch(16)
    given, found = tmp_path / "given.pt", tmp_path / "found.pt"
    torch.save((module, x), given)
    run_group(REPLICAS, str(given), str(found))
    results = torch.load(found)
    for steps in ("steps_with_drawn_samples", "steps_with_equal_seeds"):
        assert results[steps] == {
            "parameters": True,
            "samples": True,
            "losses": False,  # each process has its own part of the batch
            "changed": True,
        }
    one = _replicas()
    start = {name: t.clone() for name, t in module.state_dict().items()}
    wanted = one.gradients(module, module, x)
    _check_gradients(results["gradients"], wanted)
    module.load_state_dict(start)
    _check_counts(results["counts"], one.counts(module, module, x))


def _replicas() -> ModuleType:
    """The script that the processes run, as a module."""
    spec = importlib.util.spec_from_file_location("replicas", REPLICAS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_gradients(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient is not None, name
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=name
        )


def _check_counts(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Counts are whole numbers and equal; sums and maxima differ by how floats are rounded."""
    assert found.keys() == wanted.keys()
    assert {table["stat"] for table in wanted.values()} == {"on-fraction", "mean", "max"}
    for name, table in wanted.items():
        for key, value in table.items():
            if key in ("stat", "seen", "on"):
                assert found[name][key] == value, (name, key)
            else:
                assert found[name][key] == pytest.approx(value, rel=1e-4, abs=1e-6), (name, key)
