"""What a graph may call, by name: operators of `torch.ops`, and a closed list of functions of Python."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from fxprune.capture.functions import NAMESPACE, function_of
from fxprune.errors import LoadError
from fxprune.files.document import Entry
from fxprune.torch_private import find_overload, is_dispatched

_OPERATOR = """abs add and_ eq floordiv ge getitem gt invert le lt mod mul ne neg not_ or_ pos pow sub
    truediv xor"""
_MATH = "ceil floor trunc sqrt log log2 log10 exp pow"
_SYM = "sym_float sym_int sym_ite sym_max sym_min sym_not sym_sqrt sym_sum"
_BUILTINS = "abs bool float int max min pow round"
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{name}.{function}": getattr(module, function)
    for name, module, functions in (
        ("operator", operator, _OPERATOR),
        ("math", math, _MATH),
        ("torch", torch, _SYM),
        ("builtins", builtins, _BUILTINS),
    )
    for function in functions.split()
    if hasattr(module, function)
}
_NAMES = {function: name for name, function in reversed(_FUNCTIONS.items())}
# Those that take graphs of the same file; others load libraries, print, or call what is no operator.
_HIGHER_ORDER = """associative_scan cond flex_attention map_impl scan strict_mode
    tag_activation_checkpoint while_loop wrap_with_autocast wrap_with_set_grad_enabled""".split()
_REFUSED = frozenset(
    """c10d _c10d_functional _c10d_functional_autograd coor debug_mode_ops export fsdp inductor profiler
    prim rngprims static_runtime symm_mem _test""".split()
) | {NAMESPACE}  # which holds other operators in another process
_OPENS_FILES = frozenset({"from_file"})


def operator_text(target: Any, where: str) -> str:
    """The name of what a node calls.

    Raises:
        LoadError: nothing that can be found again by its name.
    """
    if kept := function_of(target):
        raise LoadError(
            f"the autograd Function {kept} cannot be saved",
            where=where,
            why="its forward and backward are Python code, and a saved program has operators alone",
            do="to use the network, write the plan back to the model (fp.write_back), and save what is captured of it "
            "in eval mode; to train it on, make the Function an operator of your own with torch.library.custom_op",
        )
    if name := higher_order_name(target):
        return name
    if isinstance(target, torch._ops.OpOverload):
        name = f"{target.namespace}.{target._opname}.{target._overloadname}"
        if _overload(name) is target:
            return name
    elif callable(target) and target in _NAMES:
        return _NAMES[target]
    raise LoadError(
        f"a call of {getattr(target, '__name__', target)} cannot be saved",
        where=where,
        why="a saved graph calls operators of torch.ops, and no other functions",
        do="capture the module again, which turns functions into operators: fp.capture(program.module, args)",
    )


def higher_order_name(target: Any) -> str:
    """`higher_order.cond` for the operator, "" for what is none that can be saved."""
    name = str(getattr(target, "__name__", ""))
    known = name in _HIGHER_ORDER and getattr(torch.ops.higher_order, name, None) is target
    return f"higher_order.{name}" if known else ""


def read_operator(entry: Entry) -> Callable[..., Any]:
    """What an entry names."""
    name = entry.text()
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    if namespace == "higher_order" and rest in _HIGHER_ORDER:
        found: Callable[..., Any] | None = getattr(torch.ops.higher_order, rest, None)
    else:
        found = _overload(name)
    if found is None:
        entry.fail(
            f"is {name[:80]!r}, no operator that is known",
            f"where a library registers it, import that first: import {namespace[:40]}",
        )
    return found


def _overload(name: str) -> torch._ops.OpOverload[Any, Any] | None:
    parts = name.split(".")
    if len(parts) != 3 or not all(p.isidentifier() and p.isascii() for p in parts):
        return None
    if parts[0] in _REFUSED or parts[1] in _OPENS_FILES:
        return None
    found = find_overload(*parts)
    return found if found is not None and is_dispatched(found) else None
