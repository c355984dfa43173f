"""In which form a module returns what it computes, learned from a run of the model without data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.graph.program import Program
from fxprune.verify import run_example
from fxprune.write_back.layers.removed import Key, Length, Removed, Same, Zeros, inputs_of

Tensor = torch.Tensor
_CONVOLUTION = nn.modules.conv._ConvNd


class Call:
    """What a module was given and returned.

    Args:
        module: the module, or a copy.
        inputs: tensors that it was given, by place or name.
        output: what it returned.
    """

    def __init__(self, module: nn.Module, inputs: Mapping[Key, Tensor], output: Any) -> None:
        self._kind = type(module).__name__
        self._inputs, self._output = dict(inputs), output
        self._convolution = module if isinstance(module, _CONVOLUTION) else None

    def zeros(self) -> nn.Module | None:
        """A module that returns zeros in this form; None where their sizes follow no rule that is known."""
        return self._removed(self._zeros)

    def pass_on(self) -> nn.Module | None:
        """A module that returns the first input of the same size, and zeros for other tensors."""
        single = isinstance(self._output, Tensor) and list(self._inputs) == [0]
        if single and self._same(self._output) is not None:
            return nn.Identity()
        found = self._removed(self._same_or_zeros)
        leaves = [] if found is None else pytree.tree_leaves(found.form)
        return found if any(isinstance(x, Same) for x in leaves) else None

    def _removed(self, leaf: Any) -> Removed | None:
        if not self._inputs:
            return None
        form = pytree.tree_map(lambda x: leaf(x) if isinstance(x, Tensor) else x, self._output)
        leaves = pytree.tree_leaves(form)
        plain = all(isinstance(x, Zeros | Same | int | float | str | None) for x in leaves)
        return Removed(self._kind, form) if plain else None

    def _same(self, x: Tensor) -> Same | None:
        return next((Same(k) for k, y in self._inputs.items() if _like(x, y)), None)

    def _same_or_zeros(self, x: Tensor) -> Any:
        return self._same(x) or self._zeros(x)

    def _zeros(self, x: Tensor) -> Zeros | Tensor:
        """Zeros of the size of a tensor; the tensor itself where no rule gives it."""
        for key, y in self._inputs.items():
            if _like(x, y):
                return Zeros(key)
        key, y = next(iter(self._inputs.items()))
        dtype = None if x.dtype == y.dtype else x.dtype
        lengths = self._lengths(x, y)
        return x if lengths is None else Zeros(key, tuple(lengths), dtype)

    def _lengths(self, x: Tensor, y: Tensor) -> list[Length] | None:
        """The lengths of a result, of those of an input of the same rank, of which it may differ along a last axis."""
        if self._convolution is not None:
            return list(_of_convolution(self._convolution, x, y))
        if x.dim() != y.dim():
            return None
        other = [i for i in range(x.dim()) if x.shape[i] != y.shape[i]]
        if len(other) > 1 or not set(other) <= {1, x.dim() - 1}:
            return None
        return [
            Length(plus=int(n)) if i in other else Length(axis=i) for i, n in enumerate(x.shape)
        ]


def _like(x: Any, y: Any) -> bool:
    return bool(x.shape == y.shape and x.dtype == y.dtype)


def _of_convolution(module: Any, x: Tensor, y: Tensor) -> Iterator[Length]:
    places = len(module.kernel_size)
    for i in range(y.dim() - places - 1):
        yield Length(axis=i)
    yield Length(plus=int(x.shape[-places - 1]))
    for i, (kernel, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True)
    ):
        axis, wide = y.dim() - places + i, dilation * (kernel - 1)
        if module.padding == "same":
            yield Length(axis)
            continue
        pad = 0 if module.padding == "valid" else 2 * module.padding[i]
        if module.transposed:
            yield Length(axis, stride, wide + 1 + module.output_padding[i] - stride - pad)
        else:
            yield Length(axis, 1, pad - wide - 1 + stride, stride)


def calls_of(model: nn.Module, program: Program, paths: Iterable[str]) -> dict[str, Call]:
    """What some modules of a model are given and return, the first time, in a run like that of its example.

    Raises:
        PlanError: the model does not run.
    """
    found: dict[str, Call] = {}

    def listen(twin: nn.Module) -> None:
        for path in paths:
            twin.get_submodule(path).register_forward_hook(_keeping(found, path), with_kwargs=True)

    run_example(model, program, listen)
    return found


def _keeping(found: dict[str, Call], path: str) -> Any:
    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        tensors = {k: x for k, x in inputs_of(args, kwargs).items() if isinstance(x, Tensor)}
        found.setdefault(path, Call(module, tensors, out))

    return keep
