"""fxprune: a structured pruning compiler for PyTorch models, built on torch.fx.

Public names are loaded on first use: `import fxprune` does not import torch.

Some public functions share their name with a module (`fxprune.plan`, `fxprune.capture`). As
attributes of the package, these names always refer to the functions, whatever has been imported.
To reach the modules, write `from fxprune.plan import Plan` or use `importlib.import_module`.
"""

from __future__ import annotations

import random
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxprune import training as training
    from fxprune.analysis.group import Group, Member
    from fxprune.api import (
        Outcome,
        bisect,
        compare,
        explain,
        groups,
        plan,
        prune,
        replay,
        run,
        shrink,
        summary,
        verify,
    )
    from fxprune.calibration import Calibration, evaluate, recalibrate
    from fxprune.capture import capture
    from fxprune.depth import LayersOutcome, prune_layers
    from fxprune.errors import FxpruneError
    from fxprune.graph.program import Program
    from fxprune.importance import Importance, criterion, unit_criterion
    from fxprune.instruments import PrintGraph, Reproducer, TimePasses
    from fxprune.io import load, load_model, load_report, save
    from fxprune.latency import LatencyTable
    from fxprune.partial import capture_partial
    from fxprune.pipeline import (
        Analysis,
        Context,
        Decision,
        Instrument,
        Pipeline,
        Repeat,
        Result,
        Rewrite,
        fx_pass,
    )
    from fxprune.plan import Plan
    from fxprune.remark import Remark
    from fxprune.rules.table import rule
    from fxprune.sensitivity import Sensitivity, sensitivity
    from fxprune.shards import AppliedShards, apply_to_shards, open_shards, without_weights
    from fxprune.training import prune_iteratively, recover, train_smaller
    from fxprune.write_back import write_back

__version__ = "0.1.0"
__all__ = [
    "Analysis",
    "AppliedShards",
    "Calibration",
    "Context",
    "Decision",
    "FxpruneError",
    "Group",
    "Importance",
    "Instrument",
    "LatencyTable",
    "LayersOutcome",
    "Member",
    "Outcome",
    "Pipeline",
    "Plan",
    "PrintGraph",
    "Program",
    "Remark",
    "Repeat",
    "Reproducer",
    "Result",
    "Rewrite",
    "Sensitivity",
    "TimePasses",
    "apply_to_shards",
    "bisect",
    "capture",
    "capture_partial",
    "compare",
    "criterion",
    "evaluate",
    "explain",
    "fx_pass",
    "groups",
    "load",
    "load_model",
    "load_report",
    "open_shards",
    "plan",
    "prune",
    "prune_iteratively",
    "prune_layers",
    "recalibrate",
    "recover",
    "replay",
    "rule",
    "run",
    "save",
    "sensitivity",
    "shrink",
    "summary",
    "train_smaller",
    "unit_criterion",
    "verify",
    "without_weights",
    "write_back",
]

_HOME = {
    "Analysis": "fxprune.pipeline",
    "AppliedShards": "fxprune.shards",
    "Calibration": "fxprune.calibration",
    "Context": "fxprune.pipeline",
    "Decision": "fxprune.pipeline",
    "Instrument": "fxprune.pipeline",
    "Pipeline": "fxprune.pipeline",
    "PrintGraph": "fxprune.instruments",
    "Repeat": "fxprune.pipeline",
    "Reproducer": "fxprune.instruments",
    "Result": "fxprune.pipeline",
    "Rewrite": "fxprune.pipeline",
    "TimePasses": "fxprune.instruments",
    "fx_pass": "fxprune.pipeline",
    "FxpruneError": "fxprune.errors",
    "Group": "fxprune.analysis.group",
    "Importance": "fxprune.importance",
    "LatencyTable": "fxprune.latency",
    "LayersOutcome": "fxprune.depth",
    "Member": "fxprune.analysis.group",
    "Plan": "fxprune.plan",
    "Program": "fxprune.graph.program",
    "Remark": "fxprune.remark",
    "apply_to_shards": "fxprune.shards",
    "open_shards": "fxprune.shards",
    "without_weights": "fxprune.shards",
    "capture": "fxprune.capture",
    "capture_partial": "fxprune.partial",
    "criterion": "fxprune.importance",
    "evaluate": "fxprune.calibration",
    "prune_layers": "fxprune.depth",
    "recalibrate": "fxprune.calibration",
    "load": "fxprune.io",
    "load_model": "fxprune.io",
    "load_report": "fxprune.io",
    "rule": "fxprune.rules.table",
    "save": "fxprune.io",
    "prune_iteratively": "fxprune.training",
    "recover": "fxprune.training",
    "Sensitivity": "fxprune.sensitivity",
    "sensitivity": "fxprune.sensitivity",
    "train_smaller": "fxprune.training",
    "unit_criterion": "fxprune.importance",
    "write_back": "fxprune.write_back",
}

_SUBPACKAGES = ("training",)


class _Package(ModuleType):
    """The package itself: importing a submodule does not replace a public function of the same name."""

    def __setattr__(self, name: str, value: object) -> None:
        submodule = isinstance(value, ModuleType) and value.__name__ == f"{__name__}.{name}"
        if not (submodule and name in __all__):
            super().__setattr__(name, value)


if not TYPE_CHECKING:  # seen by a type checker, it would make every misspelt name valid

    def __getattr__(name: str) -> object:
        """Loads a public name from the module that defines it, on first use."""
        if name in _SUBPACKAGES:
            return _imported(f"{__name__}.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(_imported(_HOME.get(name, "fxprune.api")), name)
        globals()[name] = value
        return value


def _imported(name: str) -> ModuleType:
    """The module; Python's random state stays as it is, from which rich draws when it is imported."""
    state = random.getstate()
    try:
        return import_module(name)
    finally:
        random.setstate(state)


def __dir__() -> list[str]:
    """Lists the public names, whether loaded or not, along with the names already defined."""
    return sorted({*globals(), *__all__, *_SUBPACKAGES})


sys.modules[__name__].__class__ = _Package
