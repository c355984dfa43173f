"""What a model can do besides its forward: tests that show what a number is for."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.graph.program import Program, named_tensors
from fxprune.process.state import callers_device, undisturbed
from fxprune.stand_in import stand_in
from fxprune.torch_private import WithoutData, quiet_failures
from fxprune.verify import TOLERANCE, batches_of, relative_error
from fxprune.verify.check import least_exact, on_meta
from fxprune.verify.noise import lively
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


_STEPS = 4  # of decoding


def decodes(model: nn.Module, program: Program) -> bool | None:
    """Whether a model computes the same with a cache of keys and values as without, as those with `generate` should.

    Small weights are enlarged: fresh ones hide what is wrong. None where the model knows no such cache.
    """
    batch = next(iter(batches_of(program, seed=0)))
    inputs = [x for x in pytree.tree_leaves((batch.args, batch.kwargs)) if _is_sequence(x)]
    if not hasattr(model, "generate") or on_meta(model) or not inputs:
        return None
    tokens = inputs[0]
    try:
        with undisturbed(), stand_in(model, own_data=True) as twin, torch.no_grad():
            twin.eval()
            held = named_tensors(twin)
            for name, x in lively(held).items():
                held[name].copy_(x)
            whole = twin(tokens, use_cache=False)[0]
            count = tokens.shape[1]
            start = max(1, count // 2, count - _STEPS)
            out = twin(tokens[:, :start], use_cache=True)
            for i in range(start, count):
                past = out.past_key_values
                out = twin(tokens[:, i : i + 1], use_cache=True, past_key_values=past)
    except Exception:
        return None
    return relative_error(out[0][:, -1], whole[:, -1]) <= TOLERANCE[least_exact({whole.dtype})]


def _is_sequence(x: Any) -> bool:
    tokens = isinstance(x, torch.Tensor) and x.dtype == torch.int64
    return tokens and x.dim() == 2 and x.shape[1] > 1


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
