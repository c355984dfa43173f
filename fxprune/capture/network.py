"""Runs a network on tensors without data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call

from fxprune.capture.record import Follow, Record, UnsupportedError, record
from fxprune.torch_private import FreeSizes

Sizes = Mapping[int, Mapping[int, int]]
_TENSORS = {torch.Tensor, nn.Parameter, nn.Buffer}
_REGISTERED = ("_parameters", "_buffers", "_modules")


class Network:
    """A network and its inputs, as tensors without data."""

    def __init__(self, model: nn.Module, inputs: list[Any], keywords: list[str]) -> None:
        self.free = FreeSizes()
        self._model, self.inputs, self._keywords = model, inputs, keywords
        self._paths: dict[nn.Module, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self._paths.setdefault(module, []).append(path)
        if any(isinstance(m, fx.GraphModule | torch.jit.ScriptModule) for m in self._paths):
            raise UnsupportedError("the network contains graphs")
        self._before = {m: dict(vars(m)) for m in self._paths}
        tensors, self._places = _tensors(model)
        self.state = {name: self.free.static(x) for name, x in tensors.items()}

    def run(
        self, sizes: Sizes, *, autograd: bool = False, follow: Callable[..., Follow] | None = None
    ) -> Record:
        """Runs the network, with given lengths of some axes of its inputs, and records the operators it calls.

        Attributes that the network changes are as before where it runs again: the last run's are left to be seen.

        Args:
            sizes: the lengths by the number of the input and of its axis.
            autograd: whether computed values may require a gradient.
            follow: is given the inputs, and returns what follows the calls, where it is a second run.
        """
        given = [
            self.free.resized(x, sizes[i]) if i in sizes else self.fixed(x)
            for i, x in enumerate(self.inputs)
        ]
        self._restore()
        before = self._registered()
        state = {place: self.state[name] for place, name in self._places.items()}
        put, count = dict(state), len(given) - len(self._keywords)
        kwargs = dict(zip(self._keywords, given[count:], strict=True))

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def call() -> Any:
            return functional_call(
                self._model, put, tuple(given[:count]), kwargs, tie_weights=False
            )

        try:
            with self.free.mode:
                sources = [*self.state.values(), *given]
                following = None if follow is None else follow(sources)
                return record(call, sources, self._paths, autograd=autograd, follow=following)
        finally:
            if not _same([*before, state], [*self._registered(), put]):
                raise UnsupportedError("the network replaces a parameter, a buffer or a module")

    def fixed(self, x: Any) -> Any:
        """Returns an input that has no free axis."""
        return self.free.static(x) if isinstance(x, torch.Tensor) else x

    def _restore(self) -> None:
        """Gives each module the attributes back that it had before the first run."""
        for module, before in self._before.items():
            now = vars(module)
            if any(now.get(name, self) is not value for name, value in before.items()) or len(
                now
            ) > len(before):
                now.clear()
                now.update(before)

    def _registered(self) -> list[dict[str, Any]]:
        """The parameters, buffers and submodules of each module."""
        return [dict(vars(m)[name]) for m in self._paths for name in _REGISTERED]


def _same(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> bool:
    return all(
        old.keys() == new.keys() and all(old[k] is new[k] for k in old)
        for old, new in zip(before, now, strict=True)
    )


def _tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Returns parameters and buffers, each by its last name, as torch.export does, and the names by where they are.

    The places are one for each module: a shared one has several paths.
    """
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    if not {type(x) for _, x in named} <= _TENSORS:
        raise UnsupportedError("the network has tensors of a custom class")
    last = {id(x): name for name, x in named}
    places = {
        f"{path}.{name}".lstrip("."): last[id(x)]
        for path, module in model.named_modules()
        for name, x in (*module._parameters.items(), *module._buffers.items())
        if x is not None
    }
    return {name: x for name, x in named if last[id(x)] == name}, places
