"""Records the operators that a network calls, in the order of the calls."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.torch_private import (
    every_call,
    in_autocast,
    module_hooks,
    mutated,
    plain_sizes,
    storage_id,
    told_sizes,
    untraced_files,
)

ModuleStack = dict[str, tuple[str, str]]


class UnsupportedError(Exception):
    """The network does something that a plain record of operators does not cover."""


class Ref(NamedTuple):
    """A reference to a tensor: an output of a call, or a source or constant, which have negative numbers."""

    call: int
    output: int | None = None


# What a tensor looked like when it was made: shape, stride, dtype and device.
Sizes = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]


class Call(NamedTuple):
    """One call of an operator, with references in place of tensors.

    Attributes:
        op: the operator.
        args: its positional arguments.
        kwargs: its keyword arguments.
        made: sizes and strides of the tensors it returned.
        container: tuple or list if it returned several tensors, else None.
        modules: the modules in which it was called, in the format of torch.export.
        frames: file and line of the forwards in which it was called, outermost first.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: list[Sizes]
    container: type[tuple[Any, ...] | list[Any]] | None
    modules: ModuleStack
    frames: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Record:
    """The calls of one run and its outputs, as references to tensors or None.

    Attributes:
        calls: the calls in order.
        constants: tensors that `torch.tensor` made from Python numbers, or that are no parameters or buffers; they are
            numbered after the sources.
        outputs: the outputs as a flat list.
        out_spec: how the outputs are nested.
    """

    calls: list[Call]
    constants: list[torch.Tensor]
    outputs: list[Ref | None]
    out_spec: pytree.TreeSpec

    def named_constants(self) -> dict[str, torch.Tensor]:
        """Returns the constants by the names that export gives them."""
        return {f"lifted_tensor_{i}": x for i, x in enumerate(self.constants)}

    def has_constants_of(self, other: Record) -> bool:
        """Returns whether both runs made the same constants."""
        return len(self.constants) == len(other.constants) and all(
            _sizes(x) == _sizes(y) and (x.is_meta or torch.equal(x, y))
            for x, y in zip(self.constants, other.constants, strict=True)
        )


class Follow(Protocol):
    """What follows the calls of a second run."""

    def call(self, number: int, call: Call) -> None:
        """Is told each call."""

    def failed(self, op: Any, args: Any, kwargs: Any) -> None:
        """Is told the call that raises, with references in place of tensors."""

    def size(self, ref: Ref, sizes: torch.Size) -> torch.Size:
        """The sizes of a tensor as the code of the network reads them."""

    def slice(self, ref: Ref, key: Any) -> None:
        """Is told what the code of the network writes in brackets after a tensor."""

    def passed(self, given: Any) -> None:
        """Is told what a method that takes sizes is given, and None when it has returned."""


def record(
    run: Callable[[], Any],
    sources: Sequence[Any],
    paths: Mapping[nn.Module, Sequence[str]],
    *,
    autograd: bool = True,
    follow: Follow | None = None,
) -> Record:
    """Runs a network and records the operators it calls.

    Args:
        run: calls the network.
        sources: its parameters, buffers and inputs; the tensor of number i is `Ref(-1 - i)`.
        paths: the paths of each of its modules; a module that is shared has several.
        autograd: whether computed values may require a gradient; a run without is twice as fast.
        follow: is told the calls of a second run, and says what sizes its code reads.

    Raises:
        UnsupportedError: an operator is called in a special mode, or takes or returns something that is
            not a tensor of this run.
    """
    recorder = _Recorder(sources, paths, follow)
    with recorder.watching(autograd=autograd):
        result = run()
    outputs, spec = pytree.tree_flatten(result)
    found = [_output(recorder, x) for x in outputs]
    return Record(recorder.calls, recorder.constants, found, spec)


def _output(recorder: _Recorder, x: Any) -> Ref | None:
    return None if x is None else recorder.ref(x)


def _sizes(x: torch.Tensor) -> Sizes:
    return tuple(x.shape), x.stride(), x.dtype, x.device


def _check_mask(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Raises if the mask does not fit; without data, attention would accept any mask."""
    if mask is not None:
        mask.expand(*query.shape[:-1], key.shape[-2])


def _is_factory(op: Any, args: Any) -> bool:
    """Returns whether the result is independent of the data of all tensors."""
    if op._opname.endswith("_like") or op._opname.startswith("new_"):
        return True
    return not any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves(args))


def _trains(args: Any, kwargs: Any) -> bool:
    leaves = pytree.tree_leaves((args, kwargs))
    return any(isinstance(x, torch.Tensor) and x.requires_grad for x in leaves)


class _Recorder:
    def __init__(
        self,
        sources: Sequence[Any],
        paths: Mapping[nn.Module, Sequence[str]],
        follow: Follow | None,
    ) -> None:
        self._follow = follow
        self.calls: list[Call] = []
        self.constants: list[torch.Tensor] = []
        self._sources = len(sources)
        self._alive: list[torch.Tensor] = []  # so that no id is given twice
        found = enumerate(sources)
        self._refs = {id(x): Ref(-1 - i) for i, x in found if isinstance(x, torch.Tensor)}
        # torch.zeros and its like hand on another tensor of the same memory than was made.
        self._factories: dict[int, tuple[Sizes, Ref]] = {}
        self._paths = paths
        self._entered = Counter[str]()
        self._stacks: list[ModuleStack] = [{}]
        self._skipped = untraced_files()

    @contextmanager
    def watching(self, *, autograd: bool) -> Iterator[None]:
        failed = self._fail if self._follow else None
        told = (
            told_sizes(self._size, self._slice, self._follow.passed)
            if self._follow
            else nullcontext()
        )
        calls = every_call(self._add, autograd=autograd, failed=failed)
        with module_hooks(self._enter, self._leave), calls, told:
            yield

    def _fail(self, op: Any, args: Any, kwargs: Any) -> None:
        refs = self._refs
        known = pytree.tree_map_only(torch.Tensor, lambda x: refs.get(id(x)), (args, kwargs))
        self._follow.failed(op, *known)  # type: ignore[union-attr]

    def _size(self, x: torch.Tensor, sizes: torch.Size) -> torch.Size:
        return self._follow.size(self.ref(x), sizes)  # type: ignore[union-attr]

    def ref(self, x: Any) -> Ref:
        if id(x) not in self._refs:
            self._adopt(x)
        return self._refs[id(x)]

    def _adopt(self, x: Any) -> None:
        """Takes a tensor with data as a constant, one without for what a factory made in its memory, if that is all."""
        if type(x) is torch.Tensor and not x.requires_grad:
            self._add_constant(x)
            return
        made = self._factories.get(storage_id(x)) if isinstance(x, torch.Tensor) else None
        if made is None or made[0] != plain_sizes(_sizes, x):
            raise UnsupportedError(f"the origin of a {type(x).__name__} is unknown")
        self._refs[id(x)] = made[1]
        self._alive.append(x)

    def _add(self, op: Any, args: Any, kwargs: Any, result: Any) -> None:
        if in_autocast() or (not torch.is_grad_enabled() and _trains(args, kwargs)):
            raise UnsupportedError(
                "an operator is called under autocast or with gradients switched off"
            )
        if op is torch.ops.aten.lift_fresh.default and type(args[0]) is torch.Tensor:
            # As export has it: the constant stays as it is.
            op = torch.ops.aten.lift_fresh_copy.default
            self._add_constant(args[0])
        if op is torch.ops.aten.scaled_dot_product_attention.default:
            _check_mask(args[0], args[1], args[3] if len(args) > 3 else kwargs.get("attn_mask"))
        given = pytree.tree_map_only(torch.Tensor, self.ref, (args, kwargs))
        container = next((t for t in (tuple, list) if isinstance(result, t)), None)
        made = [*result] if container else [result]
        if not all(isinstance(x, torch.Tensor) for x in made):
            raise UnsupportedError(f"{op} returns something that is not a tensor")
        number = len(self.calls)
        self._refs.update(
            (id(x), Ref(number, i if container else None)) for i, x in enumerate(made)
        )
        self._alive += made
        sizes = [_sizes(x) for x in made]
        self._note_memory(op, args, sizes[0] if made else None, result)
        self.calls.append(
            Call(op, given[0], given[1], sizes, container, self._stacks[-1], self._frames())
        )
        if self._follow is not None:
            self._follow.call(number, self.calls[-1])

    def _slice(self, x: torch.Tensor, key: Any) -> None:
        self._follow.slice(self.ref(x), key)  # type: ignore[union-attr]

    def _add_constant(self, x: torch.Tensor) -> None:
        self._refs[id(x)] = Ref(-1 - self._sources - len(self.constants))
        self.constants.append(x)

    def _note_memory(self, op: Any, args: Any, sizes: Sizes | None, result: Any) -> None:
        """Tracks which memory holds exactly what a factory made."""
        for i in mutated(op):
            if i < len(args) and isinstance(args[i], torch.Tensor):
                if type(args[i]) is torch.Tensor:
                    raise UnsupportedError(f"{op} writes to a constant")
                self._factories.pop(storage_id(args[i]), None)
        if _is_factory(op, args) and isinstance(result, torch.Tensor) and sizes is not None:
            self._factories[storage_id(result)] = (sizes, Ref(len(self.calls)))

    def _enter(self, module: nn.Module, _args: Any) -> None:
        if module not in self._paths:  # made while running
            self._stacks.append(self._stacks[-1])
            return
        path, kind = self._path(module), type(module)
        entry = (path, f"{kind.__module__}.{kind.__qualname__}")
        times = self._entered[path]
        self._entered[path] += 1
        key = f"L__self__{path}@{times}" if times else f"L__self__{path}"
        self._stacks.append({**self._stacks[-1], key: entry})

    def _path(self, module: nn.Module) -> str:
        """The path under which a module is called: of a shared one, the next of those inside the module that runs."""
        paths = self._paths[module]
        if len(paths) == 1:
            return paths[0]
        outer = next(reversed(self._stacks[-1].values()), ("", ""))[0]
        inside = [p for p in paths if p.rpartition(".")[0] == outer] or list(paths)
        times = self._entered[f"{id(module)} in {outer}"]
        self._entered[f"{id(module)} in {outer}"] += 1
        return inside[times % len(inside)]

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._stacks.pop()

    def _frames(self) -> tuple[tuple[str, int], ...]:
        found, frame = [], sys._getframe(2)
        while frame.f_back is not None:
            code = frame.f_code
            if code.co_name == "forward" and code.co_filename not in self._skipped:
                found.append((code.co_filename, frame.f_lineno))
            frame = frame.f_back
        return tuple(reversed(found))
