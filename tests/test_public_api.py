"""The public names: lazy, complete, and never shadowed by a submodule of the same name."""

import importlib
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import fxprune

FUNCTIONS = [name for name in fxprune.__all__ if name.islower()]
TYPES = [name for name in fxprune.__all__ if not name.islower()]


def run(code: str) -> None:
    """Runs `code` in a fresh interpreter: what is imported here must not count there."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_public(name: str) -> None:
    assert inspect.isfunction(getattr(fxprune, name))


@pytest.mark.parametrize("name", TYPES)
def test_type_is_public(name: str) -> None:
    assert inspect.isclass(getattr(fxprune, name))


def test_dir_lists_every_public_name() -> None:
    assert set(fxprune.__all__) <= set(dir(fxprune))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = fxprune.prunes  # type: ignore[attr-defined]


def test_star_import_gives_the_functions() -> None:
    run("from fxprune import *; assert callable(plan) and callable(capture) and callable(shrink)")


def test_import_is_lazy() -> None:
    run("import sys, fxprune; fxprune.__version__; assert 'torch' not in sys.modules")


def test_names_can_be_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxprune, "plan", len)
    assert fxprune.plan is len  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    "code",
    [
        "import fxprune.plan, fxprune.shrink, fxprune.capture, fxprune.verify",
        "from fxprune.plan import Plan; import fxprune",
        "import fxprune; fxprune.plan; import fxprune.plan",
        "import fxprune; fxprune.api = __import__('importlib').import_module('fxprune.api')",
        "import fxprune.cli.main",
    ],
)
def test_submodules_do_not_shadow_functions(code: str) -> None:
    check = "all(inspect.isfunction(getattr(fxprune, n)) for n in names)"
    run(f"{code}\nimport inspect\nnames = {FUNCTIONS}\nassert {check}")


def test_from_package_import_gives_the_function() -> None:
    run("from fxprune.plan import Plan; from fxprune import plan; assert not hasattr(plan, 'Plan')")


def test_import_as_gives_the_function_too() -> None:
    """`import a.b as c` reads the attribute: it does not reach a module behind a public name."""
    run("import fxprune.plan as p; import fxprune; assert p is fxprune.plan")


@pytest.mark.parametrize("name", ["plan", "capture", "shrink", "verify"])
def test_modules_are_reached_by_name(name: str) -> None:
    module = importlib.import_module(f"fxprune.{name}")
    assert isinstance(module, ModuleType)
    assert module is sys.modules[f"fxprune.{name}"]


def test_other_submodules_are_attributes() -> None:
    run("import fxprune.errors; assert fxprune.errors.FxpruneError is fxprune.FxpruneError")
