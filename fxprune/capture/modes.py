"""What of a model follows train and eval mode in its graph, and what Python fixed at capture."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.capture.failure import first_line
from fxprune.mode import MODE, mode_argument
from fxprune.operands import get_argument
from fxprune.program import module_path
from fxprune.remark import Remark
from fxprune.torch_private import WithoutData

_ATTENTION = "scaled_dot_product_attention"
_SWITCHED = {
    *("batch_norm", "instance_norm", "dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("alpha_dropout", "feature_alpha_dropout", "rrelu", "rrelu_", "lstm", "gru", "rnn_tanh"),
    *("rnn_relu", "multi_head_attention_forward", _ATTENTION),
}


@dataclass
class ModeCheck:
    """What running the model in both modes, without data, showed.

    Attributes:
        fixed: paths of the modules that Python code makes differ.
        failure: why the other mode did not run, or "".
        dropouts: by module path, `dropout_p` of its attention calls in train mode.
    """

    fixed: list[str] = field(default_factory=list)
    failure: str = ""
    dropouts: dict[str, list[float]] = field(default_factory=dict)


def check_modes(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ModeCheck:
    """Finds the modules whose forward takes another way in the other mode.

    Only classes whose code names `training` are suspects, and only with a suspect is the model run:
    once per mode on tensors without data, comparing the torch functions each module calls.
    The model's `training` flags are changed; the caller restores them.
    """
    kinds = {type(m) for m in model.modules()}
    readers = {k for k in kinds if not _is_torch(k) and _reads_training(k)}
    suspects = [path for path, m in model.named_modules() if type(m) in readers]
    if not suspects:
        return ModeCheck()
    calls: dict[bool, dict[str, list[Any]]] = {}
    check, twin = ModeCheck(), WithoutData(model, args, kwargs)
    for mode in (True, False):
        model.train(mode)
        recorder = _Recorder(model)
        try:
            recorder.run(twin)
        except Exception as error:
            return ModeCheck(suspects, f"{type(error).__name__}: {first_line(error)}")
        calls[mode] = recorder.calls
        if mode:
            check.dropouts = recorder.dropouts
    paths = [path for path, m in model.named_modules() if not _is_torch(type(m))]
    check.fixed = [p for p in paths if calls[True].get(p) != calls[False].get(p)]
    return check


def mark_modes(
    graph: fx.Graph, model: nn.Module | None, training: bool, check: ModeCheck
) -> list[str]:
    """Marks the nodes that `program.train()` switches.

    Returns:
        Paths of torch's own modules whose mode the graph cannot switch.
    """
    dropouts = {path: iter(values) for path, values in check.dropouts.items()}
    known = {} if model is None else dict(model.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        if name := mode_argument(node):
            modules = _modules(known, node)
            owner = modules[-1] if modules else model
            rate = next(dropouts.get(module_path(node), iter(())), 0.0)
            pair = _attention(node, owner, rate) if name == "dropout_p" else (True, False)
            now = pair[0 if _is_training(owner, training) else 1]
            if get_argument(node, name) == now and _follows(modules):
                node.meta[MODE] = pair
    return sorted(_unswitchable(graph, known))


def mode_remark(name: str, paths: list[str], training: bool, failure: str) -> list[Remark]:
    """The remark that says which modules keep the mode of capture."""
    if not paths:
        return []
    mode = "train" if training else "eval"
    alike: dict[str, list[str]] = {}
    for path in paths:
        alike.setdefault(re.sub(r"\b\d+\b", "*", path), []).append(path or "the model itself")
    shown = ", ".join(
        f"{pattern} ({len(same)} modules)" if len(same) > 1 else same[0]
        for pattern, same in alike.items()
    )
    why = "their code reads `self.training` in Python, which a graph does not record"
    return [
        Remark(
            "analysis",
            "capture.mode-fixed",
            name,
            f"captured in {mode} mode, and stays in it: {shown}",
            why + (f" (not confirmed: {failure})" if failure else ""),
            "capture the model again in the other mode, or write the plan back to it to train",
        )
    ]


def guess_training(graph: fx.Graph) -> bool:
    """Whether a graph without its model was captured in train mode."""
    named = ((n, mode_argument(n)) for n in graph.nodes)
    return any(name and bool(get_argument(n, name)) for n, name in named)


def _is_torch(kind: type) -> bool:
    return kind.__module__.startswith("torch.nn.")


def _reads_training(kind: type) -> bool:
    """Whether a method of the class, or of its bases below nn.Module, names `training`."""
    return any(
        "training" in names
        for base in kind.__mro__
        if base not in (nn.Module, fx.GraphModule, object)
        for attribute, method in vars(base).items()
        if attribute not in ("__init__", "train", "eval")
        for names in _names(method)
    )


def _names(method: Any) -> Iterator[tuple[str, ...]]:
    found = inspect.unwrap(method) if callable(method) else getattr(method, "__func__", None)
    codes = [c] if isinstance(c := getattr(found, "__code__", None), CodeType) else []
    while codes:
        code = codes.pop()
        yield code.co_names
        codes += [c for c in code.co_consts if isinstance(c, CodeType)]


class _Recorder(TorchFunctionMode):
    """Records the torch functions that each module calls itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: dict[str, list[Any]] = {}
        self.dropouts: dict[str, list[float]] = {}
        self._paths = {id(m): path for path, m in model.named_modules()}
        self._stack = [""]

    def run(self, twin: WithoutData) -> None:
        """Runs the model without data."""
        enter = register_module_forward_pre_hook(self._enter)
        leave = register_module_forward_hook(self._leave, always_call=True)
        try:
            with torch.enable_grad(), self:
                twin()
        finally:
            enter.remove()
            leave.remove()

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
    """Whether the call is a batch norm's `num_batches_tracked.add_(1)`, a graph switch."""
    if name != "add_" or len(args) != 2 or not isinstance(args[1], int):
        return False
    return bool(args[0].dtype == torch.long and not args[0].ndim)


def _numbers(name: str, args: Any, kwargs: Any) -> tuple[Any, ...]:
    if name in _SWITCHED:
        return ()
    leaves = pytree.tree_leaves((args, kwargs))
    return tuple(x for x in leaves if isinstance(x, int | float | bool | str))


def _modules(known: Mapping[str, nn.Module], node: fx.Node) -> list[nn.Module]:
    """The modules whose forwards made the node, outermost first."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return [known[p] for p in paths if p in known]


def _is_training(owner: nn.Module | None, training: bool) -> bool:
    return training if owner is None else owner.training


def _follows(modules: list[nn.Module]) -> bool:
    """Whether the code that made a node can have passed `training` on."""
    if modules and isinstance(modules[-1], nn.modules.batchnorm._NormBase):
        return modules[-1].momentum is not None
    return not modules or any(
        isinstance(m, fx.GraphModule) or _reads_training(type(m)) for m in reversed(modules)
    )


def _attention(node: fx.Node, owner: nn.Module | None, rate: float) -> tuple[float, float]:
    """Dropout of an attention in train and in eval mode."""
    if isinstance(owner, nn.MultiheadAttention):
        return (owner.dropout, 0.0)
    return (max(rate, float(get_argument(node, "dropout_p"))), 0.0)


def _unswitchable(graph: fx.Graph, known: Mapping[str, nn.Module]) -> Iterator[str]:
    """Torch's own modules that decide in Python: a cumulative average, a dropout on weights."""
    marked = {module_path(n) for n in graph.nodes if MODE in n.meta}
    for path in {module_path(n) for n in graph.nodes} - marked:
        owner = known.get(path)
        if isinstance(owner, nn.modules.batchnorm._NormBase):
            if owner.momentum is None and owner.track_running_stats:
                yield path
        elif isinstance(owner, nn.MultiheadAttention) and owner.dropout:
            yield path
