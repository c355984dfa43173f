"""What the calls of a network spell, as its graph has them and as runs in other types have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.failure import is_data_dependent
from fxprune.capture.fixed_numbers import Constant, constant_of, is_lift
from fxprune.capture.limits import LARGEST_HALF, LIMITS
from fxprune.process.state import callers_device
from fxprune.stand_in import stand_in
from fxprune.torch_private import WithoutData, every_call, overload

_META, _CPU = torch.device("meta"), torch.device("cpu")
_OTHER_DTYPES = (torch.float64, torch.float32, torch.bfloat16)


class Spelled(NamedTuple):
    """A call of an operator with its arguments that are a dtype, a device, a number or a constant, by name."""

    op: Any
    literals: dict[str, Any]


class Run(NamedTuple):
    """The calls of a run: those that spell something, and on demand all of them with their numbers."""

    spelled: list[Spelled]
    calls: list[tuple[Any, ...]]


class Runs:
    """Runs of a network without data, in other types and on another device.

    Attributes:
        used: the dtypes of its tensors.
        dtype: another one.
        device: a device that it is not on.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        spelled: list[Spelled],
        *,
        whole: bool,
    ) -> None:
        self._model, self._spelled, self._whole = model, spelled, whole
        self._leaves, self._spec = pytree.tree_flatten((args, dict(kwargs)))
        tensors = [
            x
            for x in (*self._leaves, *model.parameters(), *model.buffers())
            if isinstance(x, torch.Tensor)
        ]
        self.used = {x.dtype for x in tensors}
        self.dtype = next((d for d in _OTHER_DTYPES if d not in self.used), torch.float16)
        self.device = _CPU if any(x.is_meta for x in tensors) else _META
        self._own: Run | None = None

    def alike(self, dtype: torch.dtype) -> bool:
        """Whether the network calls the same operators in a dtype, with the same numbers, or does not run there."""
        after = self._run(dtype)
        return not after.calls or not self.own.calls or self.own.calls == after.calls

    def pairs(
        self, dtype: torch.dtype | None, device: torch.device | None
    ) -> list[tuple[Spelled, Spelled]] | None:
        """The calls beside those of another run; none if it cannot run, None if it calls other operators."""
        after = self._run(dtype, device).spelled
        if not after or _alike(self._spelled, after):
            return list(zip(self._spelled, after, strict=True)) if after else []
        own = self.own.spelled  # the graph lacks some calls, or has them in another order
        if not _alike(own, after):
            return None if own else []
        return list(zip(own, after, strict=True))

    @property
    def own(self) -> Run:
        """A run in the network's own dtypes, on its device."""
        self._own = self._run() if self._own is None else self._own
        return self._own

    def _run(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Run:
        with stand_in(self._model) as twin, callers_device():
            inputs = self._leaves, self._spec
            return _run(WithoutData(twin, *inputs, dtype, device), whole=self._whole)


def may_follow(call: Spelled) -> bool:
    """Whether a call spells something other than ordinary numbers."""
    values = call.literals.values()
    return any(names_type(x) or isinstance(x, Constant) or _may_be_limit(x) for x in values)


def _alike(before: Sequence[Spelled], after: Sequence[Spelled]) -> bool:
    return list(map(_operator, before)) == list(map(_operator, after))


def _operator(call: Spelled) -> Any:
    return torch.ops.aten.lift_fresh.default if is_lift(call.op) else call.op


def _run(model: WithoutData, *, whole: bool) -> Run:
    """Runs a network; nothing is spelled if it cannot run, since then nothing follows.

    Args:
        model: the network.
        whole: whether to note all calls.
    """
    run = Run([], [])

    def note(op: Any, args: Any, kwargs: Any, _result: Any) -> None:
        if whole:
            run.calls.append((op, *map(_plain, pytree.tree_leaves((args, kwargs)))))
        if literals := _literals(op, args, kwargs):
            run.spelled.append(Spelled(op, literals))

    try:
        with every_call(note, autograd=False):
            torch.compiler.disable(model)()  # type: ignore[no-untyped-call]
    except Exception as error:  # a branch on values is in the code only of this dtype
        return Run([], run.calls if is_data_dependent(error) else [])
    return run


def _plain(x: Any) -> Any:
    """A number, or which limit of a dtype it is; nothing of other arguments."""
    if isinstance(x, float) and x in LIMITS:
        return LIMITS[x].kind
    return x if isinstance(x, int | float) else None


def spelled_call(node: fx.Node) -> Spelled | None:
    """Returns the call of a node that spells a dtype, a device or a limit."""
    op = overload(node)
    if op is None or op._opname.startswith("_assert"):
        return None
    literals = _literals(op, node.args, node.kwargs)
    return Spelled(op, literals) if literals else None


def _literals(op: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    names = [a.name for a in op._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    found = {k: v for k, v in given.items() if names_type(v) or _is_number(v)}
    return {**found, names[0]: constant_of(args[0])} if is_lift(op) else found


def names_type(value: Any) -> bool:
    """Returns whether a value is a dtype or a device."""
    return isinstance(value, torch.dtype | torch.device)


def _is_number(value: Any) -> bool:
    """Returns whether it is a number that is no integer, or stands for one."""
    node = isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.SymFloat)
    return isinstance(value, float) or node


def _may_be_limit(value: Any) -> bool:
    """Returns whether a number is a limit of a dtype, or so large that it may be computed from one."""
    return isinstance(value, float) and (value in LIMITS or LARGEST_HALF < abs(value) < inf)
