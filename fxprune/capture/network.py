"""Runs a network on tensors without data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call

from fxprune.capture.record import Follow, Record, UnsupportedError, record
from fxprune.torch_private import FreeSizes

Sizes = Mapping[int, Mapping[int, int]]
_TENSORS = {torch.Tensor, nn.Parameter, nn.Buffer}
_NUMBERS = (int, float, bool, str)
# Lists of a recurrent module's own parameters; it makes them anew where a parameter was replaced.
_REMADE = {"_flat_weights", "_flat_weight_refs"}


class Network:
    """A network and its inputs, as tensors without data."""

    def __init__(self, model: nn.Module, inputs: list[Any], keywords: list[str]) -> None:
        modules = list(model.named_modules(remove_duplicate=False))
        self.free = FreeSizes()
        self._model, self.inputs, self._keywords = model, inputs, keywords
        self._paths = {m: path for path, m in modules}
        kinds = (fx.GraphModule, torch.jit.ScriptModule)
        if len(self._paths) < len(modules) or any(isinstance(m, kinds) for m in self._paths):
            raise UnsupportedError("the network shares modules, or contains graphs")
        self.state = {name: self.free.static(x) for name, x in _tensors(model).items()}

    def run(
        self, sizes: Sizes, *, autograd: bool = False, follow: Callable[..., Follow] | None = None
    ) -> Record:
        """Runs the network, with given lengths of some axes of its inputs, and records the operators it calls.

        The network must not change its own attributes.

        Args:
            sizes: the lengths by the number of the input and of its axis.
            autograd: whether computed values may require a gradient.
            follow: is given the inputs, and returns what follows the calls, where it is a second run.
        """
        given = [
            self.free.resized(x, sizes[i]) if i in sizes else self.fixed(x)
            for i, x in enumerate(self.inputs)
        ]
        before = list(self._attributes())
        state, count = dict(self.state), len(given) - len(self._keywords)
        kwargs = dict(zip(self._keywords, given[count:], strict=True))

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def call() -> Any:
            return functional_call(self._model, state, tuple(given[:count]), kwargs)

        try:
            with self.free.mode:
                sources = [*self.state.values(), *given]
                following = None if follow is None else follow(sources)
                return record(call, sources, self._paths, autograd=autograd, follow=following)
        finally:
            if not _same_attributes([*before, self.state], [*self._attributes(), state]):
                raise UnsupportedError("the network replaces an attribute or a buffer")

    def fixed(self, x: Any) -> Any:
        """Returns an input that has no free axis."""
        return self.free.static(x) if isinstance(x, torch.Tensor) else x

    def _attributes(self) -> Iterator[dict[str, Any]]:
        for module in self._paths:
            yield _kept(module) if isinstance(module, nn.RNNBase) else dict(vars(module))
            yield from (dict(v) for v in vars(module).values() if isinstance(v, dict))


def _kept(module: nn.Module) -> dict[str, Any]:
    return {name: v for name, v in vars(module).items() if name not in _REMADE}


def _same_attributes(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> bool:
    return len(before) == len(now) and all(
        all(_same(old.get(k), v) or _is_flag(old.get(k), v) for k, v in new.items())
        and old.keys() <= new.keys()
        for old, new in zip(before, now, strict=True)
    )


def _same(old: Any, new: Any) -> bool:
    return old is new or (type(old) is type(new) and isinstance(old, _NUMBERS) and old == new)


def _is_flag(old: Any, new: Any) -> bool:
    """Whether a module notes that it ran, or hooks itself up when it does: what follows shows in a second run."""
    types = {type(old), type(new)}
    return types <= {bool, type(None)} or types <= {type(None), FunctionType, partial, MethodType}


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns parameters and buffers, each by its last name as torch.export does; functional_call knows the others."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    last = {id(x): name for name, x in named}
    if not {type(x) for _, x in named} <= _TENSORS:
        raise UnsupportedError("the network has tensors of a custom class")
    return {name: x for name, x in named if last[id(x)] == name}
