"""Finds what a model's Python code does differently in train and eval mode, by running that code."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.capture.attributes import changed_attributes
from fxprune.capture.code import codes_of, reached_names
from fxprune.capture.failure import first_line
from fxprune.process.state import callers_device
from fxprune.stand_in import stand_in
from fxprune.torch_private import WithoutData, module_hooks

_ATTENTION = "scaled_dot_product_attention"
_SWITCHED = {
    *("batch_norm", "instance_norm", "dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("alpha_dropout", "feature_alpha_dropout", "rrelu", "rrelu_", "lstm", "gru", "rnn_tanh"),
    *("rnn_relu", "multi_head_attention_forward", _ATTENTION),
}


@dataclass
class ModeCheck:
    """The result of running code in both modes without data.

    Attributes:
        fixed: the paths of the modules whose Python code depends on the mode.
        failure: why the code did not run in the other mode, or "".
        dropouts: `dropout_p` of a module's attention calls in train mode, by module path.
    """

    fixed: list[str] = field(default_factory=list)
    failure: str = ""
    dropouts: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Call:
    path: str
    inputs: tuple[list[Any], pytree.TreeSpec]


class Suspects:
    """The modules of a model whose own code reads `training`, with the inputs that export passes to them.

    A module is a suspect if the code of its class, or of a forward hook, names `training`, or a function that its
    forward calls or that it keeps in an attribute. The outermost
    suspects are run alone in both modes, on tensors without data that have the shapes which export met
    there. The whole model is run instead if that would not show everything: if a suspect reads `training`
    outside its `forward`, or if a suspect was not called while some code calls a `forward` by that name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        kinds = {type(m) for m in model.modules()}
        readers = {k for k in kinds if not is_torch(k) and reads_training(k)}
        self.paths = [
            path
            for path, m in model.named_modules()
            if type(m) in readers or _hook_reads_training(m) or _kept_reads_training(m)
        ]
        self._outermost = _outermost(model, self.paths)
        self._calls: list[_Call] = []
        self.attributes: dict[str, str] = {}

    @contextmanager
    def watch(self, twin: nn.Module) -> Iterator[None]:
        """Records what a stand-in does that its graph does not show.

        These are the inputs of the outermost suspects, in the last run, and the attributes that any run changes
        (`attributes`).
        """
        self._calls.clear()
        hooks = [
            twin.get_submodule(path).register_forward_pre_hook(
                self._note(path), with_kwargs=True, prepend=True
            )
            for path in self._outermost
        ]
        try:
            yield
        finally:
            self.attributes |= changed_attributes(self._model, twin)
            for hook in hooks:
                hook.remove()

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ModeCheck:
        """Finds the modules whose forward pass takes a different path in the other mode.

        Args:
            args: the positional inputs of the whole model.
            kwargs: the keyword inputs of the whole model.
        """
        if not self.paths:
            return ModeCheck()
        whole = _Call("", pytree.tree_flatten((args, dict(kwargs))))
        calls = self._calls if self._seen_whole() else [whole]
        recorded, check = {}, ModeCheck()
        try:
            for mode in (True, False):
                recorder = self._record(calls, mode)
                recorded[mode] = recorder.calls
                if mode:
                    check.dropouts = recorder.dropouts
        except Exception as error:
            return ModeCheck(self.paths, f"{type(error).__name__}: {first_line(error)}")
        named = self._model.named_modules()
        paths = [path for path, m in named if path in self.paths or not is_torch(type(m))]
        check.fixed = [p for p in paths if recorded[True].get(p) != recorded[False].get(p)]
        return check

    def _record(self, calls: list[_Call], mode: bool) -> _Recorder:
        """What the modules do in a mode, each on the inputs noted."""
        with stand_in(self._model) as twin, callers_device():
            twin.train(mode)
            recorder = _Recorder(twin)
            for call in calls:
                recorder.run(call.path, WithoutData(twin.get_submodule(call.path), *call.inputs))
        return recorder

    def _note(self, path: str) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Flat: a list among them may grow later, and a cache computes where it is built anew.
            self._calls.append(_Call(path, pytree.tree_flatten((args, kwargs))))

        return note

    def _seen_whole(self) -> bool:
        """Returns whether running the recorded calls runs every line that reads `training`."""
        suspects = {type(self._model.get_submodule(path)) for path in self.paths}
        if any(m != "forward" for kind in suspects for m in _methods(kind, "training")):
            return False
        kinds = {type(m) for m in self._model.modules() if not is_torch(type(m))}
        by_name = any(True for kind in kinds for _ in _methods(kind, "forward"))
        called = {call.path for call in self._calls}
        return bool(called) and (called == set(self._outermost) or not by_name)


def is_torch(kind: type) -> bool:
    """Returns whether torch.nn itself defines the class; not so its parametrizations, which the graph cannot switch."""
    return kind.__module__.startswith("torch.nn.") and kind.__module__ != parametrizations.__name__


def reads_training(kind: type) -> bool:
    """Returns whether a method of the class, or of its bases below nn.Module, names `training`.

    So does a class of a module whose `forward` calls a function that names it.
    """
    if any(True for _ in _methods(kind, "training")):
        return True
    if is_torch(kind) or not issubclass(kind, nn.Module):
        return False
    return _reaches_training(inspect.getattr_static(kind, "forward"))


@cache
def _reaches_training(function: Any) -> bool:
    """Returns whether a function, or one that it calls by a global name, names `training`, as a word too."""
    return "training" in reached_names([function])


def _kept_reads_training(module: nn.Module) -> bool:
    """Returns whether a function in an attribute of the module names `training`."""
    return not is_torch(type(module)) and any(
        _reaches_training(f) for f in vars(module).values() if isinstance(f, FunctionType)
    )


def iterates(module: nn.Module) -> bool:
    """Returns whether the module estimates a spectral norm by power iteration, as a parametrization or by a hook."""
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, parametrizations._SpectralNorm) or any(
        isinstance(hook, SpectralNorm) for hook in hooks
    )


def _hook_reads_training(module: nn.Module) -> bool:
    """Returns whether a forward hook names `training`, as that of the old spectral norm does."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return any(
        reads_training(type(h)) or any("training" in names for names in _names(h)) for h in hooks
    )


def _methods(kind: type, word: str) -> Iterator[str]:
    """Yields the methods of the class, and of its bases below nn.Module, whose code names `word`."""
    for base in kind.__mro__:
        if base in (nn.Module, fx.GraphModule, object):
            continue
        for attribute, method in vars(base).items():
            if attribute in ("__init__", "train", "eval"):
                continue
            if any(word in names for names in _names(method)):
                yield attribute


def _names(method: Any) -> Iterator[tuple[str, ...]]:
    return (code.co_names for code in codes_of(method))


def _outermost(model: nn.Module, paths: list[str]) -> dict[str, nn.Module]:
    """Returns the modules at `paths` that are not inside another one of them; a parent's path comes first."""
    found: dict[str, nn.Module] = {}
    inside: set[nn.Module] = set()
    for path in paths:
        module = model.get_submodule(path)
        if module not in inside:
            found[path] = module
            inside |= set(module.modules())
    return found


class _Recorder(TorchFunctionMode):
    """Records the torch functions that each module itself calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: dict[str, list[Any]] = {}
        self.dropouts: dict[str, list[float]] = {}
        self._paths = {id(m): path for path, m in model.named_modules()}
        self._stack: list[str] = []

    def run(self, path: str, twin: WithoutData) -> None:
        """Runs the module at `path` without data."""
        self._stack = [path]
        with module_hooks(self._enter, self._leave), torch.enable_grad(), self:
            twin()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == _ATTENTION:
            rate = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)
            self.dropouts.setdefault(self._stack[-1], []).append(float(rate))
        if name != "__get__" and not _counts_batches(name, args):
            self.calls.setdefault(self._stack[-1], []).append((name, _numbers(name, args, kwargs)))
        return func(*args, **kwargs)

    def _enter(self, module: nn.Module, _args: Any) -> None:
        self._stack.append(self._paths.get(id(module), self._stack[-1]))

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._stack.pop()


def _counts_batches(name: str, args: tuple[Any, ...]) -> bool:
    """Returns whether the call is a batch norm's `num_batches_tracked.add_(1)`, which the graph can switch."""
    if name != "add_" or len(args) != 2 or not isinstance(args[1], int):
        return False
    return bool(args[0].dtype == torch.long and not args[0].ndim)


def _numbers(name: str, args: Any, kwargs: Any) -> tuple[Any, ...]:
    if name in _SWITCHED:
        return ()
    leaves = pytree.tree_leaves((args, kwargs))
    return tuple(x for x in leaves if isinstance(x, int | float | bool | str))
