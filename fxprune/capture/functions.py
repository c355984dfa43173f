"""Custom autograd Functions and hooks on gradients, which a graph of operators does not show.

While a capture records, `torch.autograd.Function.apply` is observed in its thread, and so is each `forward`, since
a model may hold an `apply` that it looked up before. A Function whose backward is wanted becomes an operator of
its own, so that the graph calls it like any other; of all else that gives a network gradients of its own, a remark
is left. A checkpoint is not such a thing: it computes again what it does not keep, and the graph has what it
computes. A reentrant one has no backward where no input of its own needs a gradient; its outputs are detached there.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction

from fxprune.capture.failure import calling_line
from fxprune.capture.pointwise import is_pointwise, same_shape
from fxprune.remark import Remark
from fxprune.torch_private import BackwardHookFunction, unrecorded, with_data

NAMESPACE = "fxprune_function"
_OF_OPERATORS = "torch._library.autograd"
_TYPES = {torch.SymInt: "SymInt", int: "SymInt", bool: "bool", float: "float", str: "str"}
_CONSTANTS = (type(None), torch.dtype, torch.device, torch.memory_format, type)
_library: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
_operators: dict[tuple[type, *tuple[Hashable, ...]], Any] = {}
_APPLY: Any = vars(torch.autograd.Function)["apply"]


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    return _APPLY.__get__(None, cls)(*args, **kwargs)


def function_of(target: object) -> str:
    """The class of the Function that an operator calls; "" of any other operator."""
    found = (key[0] for key, operator in _operators.items() if operator is target)
    return next((f"{cls.__module__}.{cls.__qualname__}" for cls in found), "")


class _NotKeptError(Exception):
    """A Function cannot be called as an operator."""


class Functions:
    """What the model calls while it is recorded that gives it gradients of its own.

    Args:
        name: the class of the model.
        keep: whether to call Functions as operators, which have their backward; else what their forward
            computes is recorded.
    """

    def __init__(self, name: str, *, keep: bool) -> None:
        self._name, self._keep = name, keep
        self._dropped: dict[str, str] = {}
        self._inside = False
        self._without_gradient = dict[str, None]()
        self._first: list[bool] | None = None
        self._later: Iterator[bool] = iter(())
        self._applied: Any = (
            None  # the Function that runs its own forward, after `_call` has seen it
        )

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Observes the calls of this thread."""
        thread = threading.get_ident()
        hook: Any = torch.Tensor.register_hook

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread or self._inside:
                return _apply(cls, *args, **kwargs)
            return self._call(cls, args, kwargs)

        def forward(cls: Any, own: Any, *args: Any) -> Any:
            if threading.get_ident() != thread or self._inside or self._applied is cls:
                return own(*args)
            context = () if _has_setup(cls) else args[:1]
            return self._call(cls, args[len(context) :], {}, lambda *a: own(*context, *a))

        def register_hook(tensor: torch.Tensor, *args: Any) -> Any:
            if threading.get_ident() == thread and not self._inside and not tensor.is_leaf:
                self._drop("a hook on the gradient of a tensor", "hooks are no operators")
            return hook(tensor, *args)

        torch.autograd.Function.apply = classmethod(apply)
        torch.Tensor.register_hook = register_hook  # type: ignore[method-assign]
        try:
            with _forwards_replaced(forward):
                yield
        finally:
            torch.autograd.Function.apply = _APPLY
            torch.Tensor.register_hook = hook  # type: ignore[method-assign]

    @contextmanager
    def first_run(self) -> Iterator[None]:
        """Around a run with autograd; runs after it decide about checkpoints as this one did."""
        self._first = []
        self._without_gradient.clear()
        try:
            yield
        finally:
            self._later, self._first = cycle(self._first), None

    def remarks(self) -> list[Remark]:
        """One remark for each Function or hook whose effect on gradients was not captured, and for checkpoints."""
        return self._remarks_on_dropped() + [
            Remark(
                "analysis",
                "capture.no-gradient",
                where,
                "no gradient goes through a reentrant checkpoint, neither in the model nor in the program",
                "none of its inputs requires a gradient, so torch computes what is inside without autograd",
                "call checkpoint(..., use_reentrant=False), or give it an input that requires a gradient",
            )
            for where in self._without_gradient
        ]

    def _remarks_on_dropped(self) -> list[Remark]:
        return [
            Remark(
                "analysis",
                "capture.backward-dropped",
                where,
                "the program computes what the model computes, but has other gradients",
                why,
                "to train it, write the plan back to the model"
                + ("" if self._keep else "; a Function is kept by capture(..., backward=True)"),
            )
            for where, why in self._dropped.items()
        ]

    def _call(
        self,
        cls: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        plainly: Callable[..., Any] | None = None,
    ) -> Any:
        """Calls a Function as an operator, or leaves a remark and calls it plainly."""
        if cls is CheckpointFunction:
            return self._checkpointed(*args)
        if cls.__module__ == _OF_OPERATORS:  # the backward of an operator, which the graph calls
            return _apply(cls, *args, **kwargs)
        if cls is BackwardHookFunction:
            self._drop("a full backward hook on a module", "hooks are no operators")
        elif self._keep:
            try:
                return self._called(cls, args, kwargs)
            except _NotKeptError as error:
                self._drop(f"the autograd Function {cls.__qualname__}", str(error))
        else:
            self._drop(
                f"the autograd Function {cls.__qualname__}",
                "what its forward computes was captured, and its backward was not",
            )
        before, self._applied = self._applied, cls
        try:
            return plainly(*args) if plainly else _apply(cls, *args, **kwargs)
        finally:
            self._applied = before

    def _checkpointed(self, run: Callable[..., Any], _: bool, *inputs: Any) -> Any:
        """What a reentrant checkpoint computes."""
        outputs = run(*inputs)
        if not torch.is_grad_enabled():
            return outputs
        needs = any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs)
        if self._first is None:
            needs = next(self._later, needs)
        else:
            self._first.append(needs)
        if needs:
            return outputs
        self._without_gradient.setdefault(self._place("a checkpoint"))
        return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, outputs)

    def _called(self, cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls the operator that calls the Function."""
        if kwargs:
            raise _NotKeptError("it is called with keyword arguments")
        leaves, spec = pytree.tree_flatten(args)
        given = [_kind(x) for x in leaves]
        self._inside = True
        try:
            with unrecorded():
                outputs = _apply(cls, *args)
            count = _count(outputs, leaves)
            passed = [x for x, kind in zip(leaves, given, strict=True) if kind is not None]
            kinds = tuple(_like(x, outputs) if isinstance(x, torch.Tensor) else x for x in leaves)
            key = (cls, spec, tuple(given), kinds, count)
            if key not in _operators:
                call = _caller(cls, leaves, given, spec)
                with with_data():
                    pointwise = count is None and is_pointwise(call, passed, outputs)
                _operators[key] = _operator(cls, call, given, count, pointwise=pointwise)
            return _operators[key](*passed)
        finally:
            self._inside = False

    def _drop(self, what: str, why: str) -> None:
        self._dropped.setdefault(self._place(what), why)

    def _place(self, what: str) -> str:
        line = calling_line()
        return f"{what} in {self._name}" + (f" at {line}" if line else "")


def _has_setup(cls: Any) -> bool:
    """Whether forward gets no context, since `setup_context` does."""
    return cls.setup_context is not torch.autograd.Function.setup_context


@contextmanager
def _forwards_replaced(forward: Callable[..., Any]) -> Iterator[None]:
    """Calls `forward(cls, own, *args)` in place of the forward `own` of each Function outside torch."""
    every = set(_subclasses(torch.autograd.Function))
    owns = {
        cls: (vars(cls).get("forward"), cls.forward)
        for cls in every
        if cls.__module__.partition(".")[0] != "torch"
    }
    try:
        for cls, (_, own) in owns.items():
            cls.forward = staticmethod(partial(forward, cls, own))
        yield
    finally:
        for cls, (before, _) in owns.items():
            if before is not None:
                cls.forward = before
            elif "forward" in vars(cls):
                del cls.forward


def _subclasses(cls: Any) -> Iterator[Any]:
    for one in cls.__subclasses__():
        yield one
        yield from _subclasses(one)


def _kind(x: Any) -> str | None:
    """The type of an operator's argument; None for a constant, which is part of the operator."""
    if isinstance(x, torch.Tensor):
        return "Tensor"
    if isinstance(x, _CONSTANTS):
        return None
    if type(x) not in _TYPES:
        raise _NotKeptError(f"it is called with a {type(x).__name__}")
    return _TYPES[type(x)]


def _count(outputs: Any, inputs: list[Any]) -> int | None:
    """The number of outputs; None for a single tensor."""
    several = isinstance(outputs, tuple)
    flat = outputs if several else (outputs,)
    if not flat or not all(isinstance(x, torch.Tensor) for x in flat):
        raise _NotKeptError("it returns something other than tensors")
    if any(x is y for x in flat for y in inputs):
        raise _NotKeptError("it writes to its input")
    return len(flat) if several else None


def _like(x: torch.Tensor, output: Any) -> tuple[Any, ...]:
    """What of a tensor decides whether a Function is pointwise."""
    return x.dim(), x.dtype, isinstance(output, torch.Tensor) and same_shape(x, output)


def _caller(
    cls: Any, leaves: list[Any], given: list[str | None], spec: pytree.TreeSpec
) -> Callable[..., Any]:
    constants = [None if kind else x for x, kind in zip(leaves, given, strict=True)]

    def call(*passed: Any) -> Any:
        values = iter(passed)
        flat = [next(values) if kind else x for x, kind in zip(constants, given, strict=True)]
        return _apply(cls, *pytree.tree_unflatten(flat, spec))

    return call


def _operator(
    cls: Any,
    call: Callable[..., Any],
    given: list[str | None],
    count: int | None,
    *,
    pointwise: bool,
) -> Any:
    """Defines the operator; autograd sees through it what the Function does."""
    name = re.sub(r"\W+", "_", f"{cls.__name__}_{len(_operators)}")
    arguments = ", ".join(f"{kind} x{i}" for i, kind in enumerate(k for k in given if k))
    returns = "Tensor" if count is None else f"({', '.join(['Tensor'] * count)})"
    tags = (torch.Tag.pointwise,) if pointwise else ()
    _library.define(f"{name}({arguments}) -> {returns}", tags=tags)
    _library.impl(name, call, "CompositeImplicitAutograd")
    return getattr(getattr(torch.ops, NAMESPACE), name).default
