"""A package of somebody else: installed, found by its entry points, used."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from fxprune.errors import OptionError
from fxprune.plugins import load_plugins

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"
SCRIPT = """
import torch
from torch import nn
import fxprune as fp
from fxprune_example.operator import scale_shift

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 4)
        self.scale, self.shift = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
    def forward(self, x):
        x = torch.relu(torch.relu(self.one(x)))
        return self.two(torch.relu(scale_shift(x, self.scale, self.shift)))

torch.manual_seed(0)
program = fp.capture(Net().eval(), torch.randn(2, 6))
members = {m.param for g in fp.groups(program) for m in g.members}
assert {"one.weight", "scale", "shift", "two.weight"} <= members, members
outcome = fp.prune(program, keep=0.5, metric="units", importance="example-largest")
assert outcome.program.tensors()["scale"].shape == (4,)
result = fp.run(program, None, "example-merge-relu{keep-first=0} | drop-identity",
                disable=["drop-*"])
assert [s.rewrites for s in result.steps] == [1, 0], result
assert result.steps[0].checks
print("used")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the plugin is installed."""
    target = tmp_path_factory.mktemp("site")
    options = "--quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check"
    command = [sys.executable, "-m", "pip", "install", *options.split(), "--target", str(target)]
    done = subprocess.run([*command, str(PLUGIN)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def run(target: Path, *words: str) -> str:
    path = os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not PLUGIN.exists(), reason="the tests run outside a checkout")
def test_rule_criterion_and_pass_of_a_plugin_are_used(installed: Path) -> None:
    assert run(installed, "-c", SCRIPT) == "used\n"
    listed = run(installed, "-m", "fxprune", "passes")
    (line,) = (x for x in listed.splitlines() if x.startswith("example-merge-relu"))
    assert "keep-first=0" in line
    assert "fxprune-example 0.1.0" in line


def test_a_plugin_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("mine", "no_such_package.rules", "fxprune.rules")
    monkeypatch.setattr("fxprune.plugins.entry_points", lambda group: [broken])
    with pytest.raises(OptionError, match="'mine' of a package cannot be loaded") as caught:
        load_plugins("fxprune.rules")
    assert caught.value.where == "fxprune.rules: no_such_package.rules"
    assert "No module named 'no_such_package'" in caught.value.why
