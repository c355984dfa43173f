"""What a model can do besides its forward: tests that show what a number is for."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.graph.program import Program
from fxprune.process.state import callers_device, undisturbed
from fxprune.stand_in import stand_in
from fxprune.torch_private import WithoutData, quiet_failures
from fxprune.write_back.changes import shape_of
from fxprune.write_back.slots import Slot


def takes_new_head(model: nn.Module, program: Program) -> bool:
    """Whether the model still runs after `reset_classifier(n)`, as models of timm should."""
    leaves, spec = pytree.tree_flatten((program.args, dict(program.kwargs)))
    try:
        with undisturbed(), stand_in(model) as twin, callers_device(), quiet_failures():
            reset: Any = twin.reset_classifier
            reset(7)
            WithoutData(twin, leaves, spec)()
    except Exception:
        return False
    return True


def size_of_named(model: nn.Module, slot: Slot, before: Program, after: Program) -> int | None:
    """The new size of what a submodule returns, for a number in a dict that names the submodule beside it.

    So lists of feature maps say what they are: {"module": "stages.1", "num_chs": 96}.
    """
    if len(slot.trail) < 2 or not isinstance(slot.trail[-1], str):
        return None
    beside = Slot(slot.path, slot.kind, slot.trail[:-1], 0).get(model)
    if not isinstance(beside, dict):
        return None
    names = [v for v in beside.values() if isinstance(v, str)]
    for name in names:
        path = f"{slot.path}.{name}".removeprefix(".")
        found = _returned(before, path)
        small = {n.name: n for n in after.nodes}
        if found is None or found.name not in small:
            continue
        sizes = zip(shape_of(found), shape_of(small[found.name]), strict=False)
        news = {new for old, new in sizes if type(old) is int and old == slot.value}
        if len(news) == 1:
            return int(news.pop())
    return None


def _returned(program: Program, path: str) -> fx.Node | None:
    """The last node that a module made: what it returns."""
    last = None
    for node in program.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack and any(p == path for p, _ in stack.values()):
            last = node
    return last
