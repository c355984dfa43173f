"""Which submodules a model calls, and on what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.capture.failure import first_line, own_line
from fxprune.errors import CaptureError
from fxprune.process.state import callers_device, undisturbed
from fxprune.stand_in import stand_in

Signature = tuple[str, ...]


@dataclass
class Call:
    """One call of a submodule, and those made while it ran."""

    path: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    inner: list[Call] = field(default_factory=list)

    def signature(self) -> Signature:
        """The path and what the inputs look like, whatever their batch."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        return (self.path, str(spec), *map(_look, leaves))


def _look(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}[{value.dim()}]{tuple(value.shape[1:])}"
    return repr(value) if isinstance(value, int | float | str | None) else type(value).__name__


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Runs a copy of the model on copies of the inputs; the tree of the calls it made."""
    root = Call("")
    open_calls: list[Call] = []
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, (args, kwargs))
    with undisturbed(), stand_in(model, own_data=True) as twin, callers_device(), torch.no_grad():
        for path, module in twin.named_modules():
            before, after = _hooks(path, root, open_calls)
            module.register_forward_pre_hook(before, with_kwargs=True)
            module.register_forward_hook(after, always_call=True)
        _run(twin, args, kwargs)
    return root


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        model(*args, **kwargs)
    except Exception as error:
        raise CaptureError(
            "the model does not run on the example inputs",
            where=f"{type(model).__name__} at {own_line(error)}",
            why=f"{type(error).__name__}: {first_line(error)}",
            do="compare the inputs with the signature of the model's forward",
        ) from error


def _hooks(path: str, root: Call, open_calls: list[Call]) -> tuple[Any, Any]:
    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        call = root if not open_calls else Call(path)
        if open_calls:
            open_calls[-1].inner.append(call)
        call.args, call.kwargs = pytree.tree_map_only(
            torch.Tensor, lambda x: x.detach().clone(), (args, kwargs)
        )
        open_calls.append(call)

    def after(*_: Any) -> None:
        open_calls.pop()

    return before, after
