"""The only module that uses private names of torch, behind functions of its own.

torch has no public way to decompose one operator of a graph, to read an operator's aliasing, to run a
model on tensors without data, to make a fake tensor of other sizes cheaply, to put back the default device, or
to write down and rebuild symbolic sizes. When torch moves these, this is the only file to mend;
`tests/test_torch_private.py` says what each is for.
"""

from __future__ import annotations

import io
import keyword
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import sympy
import torch
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource, TensorProperty, TensorPropertySource
from torch._export.utils import _compiling_state_context
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.export._trace import _ignore_backend_decomps
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import (
    ProxyTorchDispatchMode,
    disable_proxy_modes_tracing,
    make_fx,
)
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    uninteresting_files,
)
from torch.fx.node import _get_qualified_name
from torch.nn.modules._functions import BackwardHookFunction as BackwardHookFunction
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils import _device
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._sympy import functions as sympy_functions
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.printers import PythonPrinter

try:
    from torch.fx.experimental.symbolic_shapes import guarding_hint_or_throw as _hint
except ImportError:  # torch 2.8 and some after it know the hint as an attribute

    def _hint(a: Any) -> Any:  # type: ignore[misc]
        return a.node.hint if isinstance(a, torch.SymInt) else a


def attribute_access(base: str, target: str) -> str:
    """Returns Python code that reads `target`, names separated by dots, from the value of the code `base`.

    Any text names a module of an `nn.ModuleDict`. Only ASCII is written with a dot: Python reads other letters
    in a normalised form, which `setattr` does not do.
    """
    for name in target.split("."):
        plain = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
        base = f"{base}.{name}" if plain else f"getattr({base}, {name!r})"
    return base


def function_access(func: Callable[..., Any]) -> str:
    """Returns Python code that reads a function, such as `getattr(torch.ops.aten.random, 'from')`."""
    name = _get_qualified_name(func)
    base, _, rest = name.partition(".")
    return attribute_access(base, rest) if any(map(keyword.iskeyword, rest.split("."))) else name


# The code that torch.fx writes is no Python where a name is a keyword (pytorch#188538), and every GraphModule
# compiles that code again at each copy; other names are written as before.
fx.graph._format_target = attribute_access
fx.graph._get_qualified_name = function_access  # type: ignore[attr-defined]


def overload(node: fx.Node) -> torch._ops.OpOverload[Any, Any] | None:
    """Returns the operator that a call_function node calls, or None for a Python function."""
    if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
        return node.target
    return None


def higher_order(node: fx.Node) -> str:
    """Returns the name of the higher-order operator (`"cond"`, ...) that a node calls, or ""."""
    found = isinstance(node.target, torch._ops.HigherOrderOperator)
    return str(getattr(node.target, "__name__", "")) if found else ""


def operator_name(op: torch._ops.OpOverload[Any, Any]) -> str:
    """Returns the operator's name, such as `aten.mean.dim`; the default overload is omitted: `aten.einsum`."""
    return str(op).removesuffix(".default")


@cache
def aliased(op: torch._ops.OpOverload[Any, Any]) -> tuple[int, ...]:
    """Returns the positions of the arguments with which an output may share memory."""
    schema = op._schema
    if not any(r.alias_info for r in schema.returns) and not op._opname.endswith("dropout"):
        return ()
    if op._opname.endswith("dropout"):
        return (0,)
    return tuple(i for i, a in enumerate(schema.arguments) if a.alias_info)


@cache
def mutated(op: torch._ops.OpOverload[Any, Any]) -> tuple[int, ...]:
    """Returns the positions of the arguments to which the operator writes."""
    found = enumerate(op._schema.arguments)
    return tuple(i for i, a in found if a.alias_info and a.alias_info.is_write)


@cache
def functional(
    op: torch._ops.OpOverload[Any, Any],
) -> torch._ops.OpOverload[Any, Any] | None:
    """Returns `aten.relu` for `aten.relu_`, or None if no operator has the same arguments."""
    if not op._opname.endswith("_") or mutated(op) != (0,):
        return None
    packet = getattr(getattr(torch.ops, op.namespace), op._opname[:-1], None)
    twin = getattr(packet, op._overloadname, None)
    if twin is None or mutated(twin) or len(twin._schema.returns) != 1:
        return None
    same = [(a.name, str(a.type)) for a in op._schema.arguments] == [
        (a.name, str(a.type)) for a in twin._schema.arguments
    ]
    return twin if same else None


@cache
def without_out(
    op: torch._ops.OpOverload[Any, Any],
) -> torch._ops.OpOverload[Any, Any] | None:
    """Returns `aten.div.Tensor` for `aten.div.out`, or None for operators that do not return one `out`."""
    schema = op._schema
    if len(schema.returns) != 1 or [schema.arguments[i].name for i in mutated(op)] != ["out"]:
        return None
    wanted = [(a.name, str(a.type)) for a in schema.arguments if a.name != "out"]
    packet = op.overloadpacket
    for twin in (getattr(packet, name) for name in packet.overloads()):
        if [(a.name, str(a.type)) for a in twin._schema.arguments[: len(wanted)]] != wanted:
            continue
        rest = twin._schema.arguments[len(wanted) :]
        if not mutated(twin) and all(a.has_default_value() for a in rest):
            return cast("torch._ops.OpOverload[Any, Any]", twin)
    return None


def pytree_specs(graph: fx.Graph) -> tuple[pytree.TreeSpec, pytree.TreeSpec] | None:
    """Returns how inputs and outputs are nested; None for a graph that takes and returns flat values."""
    info = getattr(graph._codegen, "pytree_info", None)
    return None if info is None else (info.in_spec, info.out_spec)


def input_names(graph: fx.Graph) -> list[str]:
    """The names of the inputs of a graph that takes nested values."""
    return list(graph._codegen.pytree_info.orig_args)  # type: ignore[attr-defined]


def static_size(size: int | torch.SymInt) -> int | None:
    """Returns the size if it is known, including a symbol that torch.export has fixed since."""
    return size if isinstance(size, int) else size.node.maybe_as_int()


def example_number(x: Any) -> Any:
    """Returns the number that a size has in the example; None where it depends on data."""
    try:
        return _hint(x) if isinstance(x, torch.SymInt) else x
    except Exception:  # the class of the error is not public either
        return None


def fake_result(op: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Returns the operator's result on tensors without data; nodes stand for their `meta["val"]`."""
    args, kwargs = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
    mode = fake_mode_of((args, kwargs))
    if mode is None:
        return op(*args, **kwargs)
    with mode:
        return op(*args, **kwargs)


class _Casts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which of the given tensors are cast to another type of real numbers, and to which."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._given = {id(x) for x in tensors}
        self.found: dict[int, torch.dtype] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        dtype = (kwargs or {}).get("dtype")
        if func is torch.ops.aten._to_copy.default and id(args[0]) in self._given and dtype:
            self.found[id(args[0])] = dtype
        return func(*args, **(kwargs or {}))


def made_casts(
    op: Callable[..., Any], args: Any, kwargs: Any, device: str, dtype: torch.dtype
) -> dict[fx.Node, torch.dtype]:
    """Returns which arguments of a call autocast casts, and to which type; nodes stand for their `meta["val"]`."""
    nodes: dict[fx.Node, Any] = {}
    fx.node.map_arg((args, kwargs), lambda n: nodes.setdefault(n, _unlike(n.meta["val"])))
    values = [x for x in pytree.tree_leaves([*nodes.values()]) if isinstance(x, torch.Tensor)]
    args, kwargs = fx.node.map_arg((args, kwargs), nodes.__getitem__)
    cast = torch.autocast(device, dtype, cache_enabled=False)
    mode, casts = fake_mode_of(values) or nullcontext(), _Casts(values)
    with enable_python_dispatcher(), mode, cast, casts:
        op(*args, **kwargs)
    return {n: casts.found[id(v)] for n, v in nodes.items() if id(v) in casts.found}


def _unlike(value: Any) -> Any:
    """Returns tensors that no other node has, since calls are told apart by their tensors."""
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, value)


def fake_mode_of(values: Any) -> FakeTensorMode | None:
    """Returns the fake mode of the first fake tensor inside `values`."""
    leaves = pytree.tree_leaves(values)
    return next((x.fake_mode for x in leaves if isinstance(x, FakeTensor)), None)


def decompose(
    op: torch._ops.OpOverload[Any, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[fx.GraphModule, list[fx.Node]] | None:
    """Decomposes a call by one step.

    Returns:
        A graph whose placeholders correspond to the listed nodes in order; None if torch has no decomposition.
    """
    body = _decomposition(op)
    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    nodes = list(dict.fromkeys(x for x in leaves if isinstance(x, fx.Node)))
    values = [n.meta.get("val") for n in nodes]
    mode = fake_mode_of(values)
    if body is None or mode is None or any(v is None for v in values):
        return None

    def call(*given: Any) -> Any:
        known = dict(zip(nodes, given, strict=True))
        flat = [known.get(x, x) if isinstance(x, fx.Node) else x for x in leaves]
        call_args, call_kwargs = pytree.tree_unflatten(flat, spec)
        return op(*call_args, **call_kwargs)

    with mode, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Two nodes may hold one value, and make_fx tells its inputs apart by identity.
        values = [v.detach() if isinstance(v, torch.Tensor) else v for v in values]
        return make_fx(call, decomposition_table={op: body}, pre_dispatch=True)(*values), nodes


def _decomposition(op: torch._ops.OpOverload[Any, Any]) -> Callable[..., Any] | None:
    if op._can_decompose():
        return op.decompose
    return _table().get(op)


@cache
def _table() -> dict[Any, Callable[..., Any]]:
    return dict(torch._decomp.core_aten_decompositions())


class WithoutData:
    """A model and its inputs as tensors without data; the model's own tensors do not change.

    Where the inputs come from a trace, a free size has the value of the example.

    Args:
        model: the model.
        leaves: its inputs, `(args, kwargs)`, as a flat list.
        spec: how they are nested.
        dtype: the dtype of all floating-point tensors; None for their own.
        device: the device of all tensors; None for their own.
    """

    def __init__(
        self,
        model: nn.Module,
        leaves: Iterable[Any],
        spec: pytree.TreeSpec,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._model, self._dtype, self._device = model, dtype, device
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._known: dict[int, torch.Tensor] = {}
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._state = {name: self._empty(x) for name, x in tensors.items()}
        self._leaves, self._spec = [self._leaf(x) for x in leaves], spec

    def __call__(self) -> Any:
        """Returns the model's outputs, without data."""
        with self._mode, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            args, kwargs = pytree.tree_unflatten(self._leaves, self._spec)
            return functional_call(self._model, self._state, args, kwargs)

    def _leaf(self, x: Any) -> Any:
        if isinstance(x, torch.SymInt):
            return _hint(x)
        return self._empty(x) if isinstance(x, torch.Tensor) else x

    def _empty(self, x: torch.Tensor) -> torch.Tensor:
        if id(x) not in self._known:
            shape, stride = ([_hint(n) for n in s] for s in (x.shape, x.stride()))
            dtype = self._dtype if self._dtype and x.is_floating_point() else x.dtype
            new = _fake(self._mode, shape, stride, dtype, self._device or x.device)
            self._known[id(x)] = new.requires_grad_(x.requires_grad)
        return self._known[id(x)]


@contextmanager
def quiet_failures() -> Iterator[None]:
    """Keeps torch from logging operators that fail on tensors without data: the exception says it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def resized(value: torch.Tensor, sizes: Sequence[Any]) -> torch.Tensor:
    """Returns a fake tensor of other sizes in the same fake mode; 30 times cheaper than `value.new_empty(sizes)`."""
    if not isinstance(value, FakeTensor):
        return value.new_empty(list(sizes))
    meta = torch.empty(list(sizes), dtype=value.dtype, device="meta")
    return FakeTensor(value.fake_mode, meta, value.device)


def _fake(
    mode: FakeTensorMode,
    shape: Sequence[Any],
    stride: Sequence[Any],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    meta = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    return FakeTensor(mode, meta, device)


class _ModesOfThread(threading.local, torch._ops._ModeStackStateForPreDispatch):
    """The modes before autograd, each thread its own.

    torch keeps them for the whole process: while one thread records a network, the symbolic sizes of
    another one would ask the first one's mode.
    """


torch._ops._mode_stack_state_for_pre_dispatch = _ModesOfThread()  # type: ignore[no-untyped-call]


_LIFTS = {torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default}


def _of_constants(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator computes from tensors alone that have data while the network runs without: from constants."""
    if any(isinstance(x, FakeTensor) for x in args):  # nearly every call
        return False
    given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    if not given or any(type(x) is not torch.Tensor for x in given):
        return False
    return func not in _LIFTS and not func._schema.is_mutable


class _EveryCall(ProxyTorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports every operator that Python code calls, before autograd and decompositions see it."""

    def __init__(
        self, tell: Callable[..., None], *, autograd: bool, failed: Callable[..., None] | None
    ) -> None:
        super().__init__(None, "fake", pre_dispatch=True)  # type: ignore[arg-type]
        self._tell, self._failed = tell, failed
        self._below = nullcontext if autograd else torch._C._AutoDispatchBelowAutograd

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        outer, _inside.operator = getattr(_inside, "operator", False), True
        try:
            if _of_constants(func, args, kwargs):
                with torch._C._DisablePythonDispatcher(), unset_fake_temporarily():
                    return func(*args, **kwargs)
            with torch._C._DisablePythonDispatcher(), self._below():
                result = func(*args, **kwargs)
            self._tell(func, args, kwargs, result)
        except Exception:
            if self._failed is not None:
                self._failed(func, args, kwargs)
            raise
        finally:
            _inside.operator = outer
        return result


def plain_sizes(read: Callable[[torch.Tensor], Any], x: torch.Tensor) -> Any:
    """Returns what a function reads of a tensor, as operators do: see `told_sizes`."""
    outer, _inside.operator = getattr(_inside, "operator", False), True
    try:
        return read(x)
    finally:
        _inside.operator = outer


_TAKE_SIZES = """view reshape expand repeat tile unflatten broadcast_to narrow split tensor_split
    new_zeros new_ones new_full new_empty""".split()
_inside = threading.local()  # whether this thread runs an operator, for `told_sizes`


class _Sizes:
    """Reads the sizes of tensors without data for the Python code of a network, in the thread that makes this."""

    def __init__(
        self,
        tell: Callable[[torch.Tensor, torch.Size], torch.Size],
        sliced: Callable[[torch.Tensor, Any], None],
        passed: Callable[[Any], None],
    ) -> None:
        self._tell, self._sliced, self._passed = tell, sliced, passed
        self._thread, self._shape = threading.get_ident(), cast(Any, torch.Tensor.shape)

    def _is_own(self) -> bool:
        return threading.get_ident() == self._thread and not getattr(_inside, "operator", False)

    def shape(self, x: Any) -> torch.Size:
        sizes: torch.Size = self._shape.__get__(x)
        return self._tell(x, sizes) if self._is_own() else sizes

    def numel(self, x: Any) -> Any:
        count: Any = 1
        for length in self.shape(x):
            count = count * length
        return count

    def passing(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._is_own():
                return method(*args, **kwargs)
            self._passed((args, kwargs))
            try:
                return method(*args, **kwargs)
            finally:
                self._passed(None)

        return call

    def attributes(self) -> dict[str, Any]:
        """What a tensor without data has in place of its own methods."""
        item = torch.Tensor.__getitem__

        def getitem(x: Any, key: Any) -> Any:
            if self._is_own():
                self._sliced(x, key)
            return item(x, key)

        def size(x: Any, dim: int | None = None) -> Any:
            return self.shape(x) if dim is None else self.shape(x)[dim]

        def length(x: Any) -> int:
            return int(self.shape(x)[0])  # Python takes a plain number only

        def numel(x: Any) -> Any:
            return self.numel(x)

        return {
            "__getitem__": getitem,
            "__len__": length,
            "shape": property(lambda x: self.shape(x)),
            "size": size,
            "numel": numel,
            "nelement": numel,
            **{name: self.passing(getattr(torch.Tensor, name)) for name in _TAKE_SIZES},
        }


@contextmanager
def told_sizes(
    tell: Callable[[torch.Tensor, torch.Size], torch.Size],
    sliced: Callable[[torch.Tensor, Any], None],
    passed: Callable[[Any], None],
) -> Iterator[None]:
    """Lets the Python code of a network read the sizes that `tell` makes of a tensor without data and its sizes.

    Meant for the inside of `every_call`: operators go on reading the plain sizes, and so do other threads.

    Args:
        tell: makes the sizes.
        sliced: is told a tensor and what stands in brackets after it.
        passed: is told what a method that takes sizes is given, and None when it has returned.
    """
    sizes = _Sizes(tell, sliced, passed)
    own = sizes.attributes()
    before = {name: FakeTensor.__dict__[name] for name in own if name in FakeTensor.__dict__}
    functions = [(home, name, getattr(home, name)) for home, name in _functions_of_sizes()]
    for name, value in own.items():
        setattr(FakeTensor, name, value)
    for home, name, function in functions:
        setattr(home, name, sizes.passing(function))
    try:
        yield
    finally:
        for home, name, function in functions:
            setattr(home, name, function)
        for name in own:
            delattr(FakeTensor, name)
        for name, value in before.items():
            setattr(FakeTensor, name, value)


def _functions_of_sizes() -> Iterator[tuple[Any, str]]:
    """Functions that are given sizes, and where Python code looks them up."""
    for name in ("arange", "zeros", "ones", "full", "empty", "reshape", "linspace"):
        yield torch, name
    nn_functions = cast(Any, torch._C)._nn
    for name in vars(nn_functions):
        if name == "pad" or name.startswith(("upsample", "_upsample", "adaptive")):
            yield nn_functions, name


@contextmanager
def every_call(
    tell: Callable[..., None], *, autograd: bool, failed: Callable[..., None] | None = None
) -> Iterator[None]:
    """Calls `tell` with the operator, arguments, keyword arguments and result of each call, as an export sees them.

    What is computed from tensors with data alone, such as a constant in a module, keeps its data, and is no call.

    Only the mode of make_fx may come before autograd, so this class derives from it.

    Args:
        tell: is called after each call.
        autograd: whether results may require a gradient.
        failed: is called with operator, arguments and keyword arguments of a call that raises, or whose `tell` does.
    """
    with (
        enable_python_dispatcher(),
        torch._C._EnablePreDispatch(),
        _compiling_state_context(),
        _ignore_backend_decomps(),
        _before_autograd(_EveryCall(tell, autograd=autograd, failed=failed)),
    ):
        yield


class _ChangedCalls(ProxyTorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls every operator that Python code calls with other arguments."""

    def __init__(self, change: Callable[..., tuple[Any, Any]]) -> None:
        super().__init__(None, "fake", pre_dispatch=True)  # type: ignore[arg-type]
        self._change = change

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = self._change(func, args, kwargs or {})
        with torch._C._DisablePythonDispatcher():
            return func(*args, **kwargs)


@contextmanager
def changed_calls(change: Callable[..., tuple[Any, Any]]) -> Iterator[None]:
    """Calls each operator with what `change` makes of operator, arguments and keyword arguments."""
    with (
        enable_python_dispatcher(),
        torch._C._EnablePreDispatch(),
        _before_autograd(_ChangedCalls(change)),
    ):
        yield


@contextmanager
def _before_autograd(mode: ProxyTorchDispatchMode) -> Iterator[None]:
    torch._ops._set_mode_pre_dispatch(mode)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        proxy = torch._C._TorchDispatchModeKey.PROXY
        torch._ops.unset_mode_pre_dispatch(proxy)  # type: ignore[no-untyped-call]


@contextmanager
def unrecorded() -> Iterator[None]:
    """Hides what is called from `every_call` and from an export that is recording."""
    with disable_proxy_modes_tracing(), torch._C.DisableTorchFunction():
        yield


@contextmanager
def with_data() -> Iterator[None]:
    """Lets tensors have data while a model runs without, and hides what is called from what records it."""
    with unrecorded(), unset_fake_temporarily():
        yield


@contextmanager
def backward_refused(refuse: Callable[[], None]) -> Iterator[None]:
    """Calls `refuse` where this thread runs autograd's engine while its operators are recorded."""
    autograd: Any = torch.autograd
    thread, run = threading.get_ident(), autograd._engine_run_backward

    def engine(*args: Any, **kwargs: Any) -> Any:
        proxy = torch._C._TorchDispatchModeKey.PROXY
        recorded = torch._ops._get_dispatch_mode_pre_dispatch(proxy)  # type: ignore[no-untyped-call]
        if threading.get_ident() == thread and recorded is not None:
            refuse()
        return run(*args, **kwargs)

    autograd._engine_run_backward = engine
    try:
        yield
    finally:
        autograd._engine_run_backward = run


@contextmanager
def function_modes_kept() -> Iterator[None]:
    """Puts back afterwards the modes in which this thread calls functions of torch: the default device is one."""
    modes, context = _get_current_function_mode_stack(), _default_device()  # type: ignore[no-untyped-call]
    device = _device.CURRENT_DEVICE
    try:
        yield
    finally:
        now = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        if now != modes or _default_device() is not context:
            for _ in now:
                _pop_mode()  # type: ignore[no-untyped-call]
            for mode in modes:
                _push_mode(mode)  # type: ignore[no-untyped-call]
            torch._GLOBAL_DEVICE_CONTEXT.device_context = context
            _device.CURRENT_DEVICE = device


def _default_device() -> Any:
    """The mode that `torch.set_default_device` set, if any."""
    return getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)


def in_autocast() -> bool:
    """Returns whether operators run under autocast on any kind of device."""
    return torch._C._is_any_autocast_enabled()


def is_watched(inputs: Any = ()) -> bool:
    """Returns whether a mode, a trace or a transform sees the calls of this thread that follow, on these inputs."""
    ops: Any = torch._ops
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or ops._len_torch_dispatch_stack_pre_dispatch()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._is_tracing()
        or any(isinstance(x, fx.Proxy) for x in pytree.tree_leaves(inputs))
    )


def has_hooks(module: nn.Module) -> bool:
    """Returns whether a call of a module would call a hook of its own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_symbolic(x: object) -> bool:
    """Whether it is a tensor without data, a number that is none yet, or stands for a value in a graph."""
    return isinstance(x, FakeTensor | torch.SymInt | torch.SymFloat | torch.SymBool | fx.Proxy)


def size_key(size: int | torch.SymInt) -> Any:
    """Returns what is equal for equal sizes: the number, or the expression of one that is known at run time only."""
    return size if isinstance(size, int) else size.node.expr


def storage_id(x: torch.Tensor) -> int:
    """Returns a number shared by all tensors with the same memory; tensors without data have no address."""
    number: int = x.untyped_storage()._cdata
    return number


def untraced_files() -> set[str]:
    """Returns the files whose frames torch.export leaves out of a node's stack trace."""
    return set(uninteresting_files())


@contextmanager
def module_hooks(before: Callable[..., None], after: Callable[..., None]) -> Iterator[None]:
    """Calls `before` and `after` around every forward of a module in this thread, whatever it raises."""
    thread = threading.get_ident()

    def own(tell: Callable[..., None]) -> Callable[..., None]:
        return lambda *args: tell(*args) if threading.get_ident() == thread else None

    enter = register_module_forward_pre_hook(own(before))
    leave = register_module_forward_hook(own(after), always_call=True)
    try:
        yield
    finally:
        enter.remove()
        leave.remove()


class _WithoutThread(io.TextIOBase):
    """A stream that drops what one thread writes."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def without_stderr() -> Iterator[None]:
    """Drops what this thread writes to stderr; torch.export prints the graph of a failure there."""
    with redirect_stderr(_WithoutThread(sys.stderr)):
        yield


@contextmanager
def unlogged_failures() -> Iterator[None]:
    """Keeps torch from logging what an operator raises on tensors without data; the exception is still raised."""
    log = logging.getLogger(FakeTensor.__module__)
    disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = disabled


class FreeSizes:
    """Tensors without data whose sizes may be computed from free ones."""

    def __init__(self) -> None:
        self._env = ShapeEnv(tracked_fakes=[])
        self.mode = FakeTensorMode(shape_env=self._env, allow_non_fake_inputs=True, export=True)
        self._numbers: dict[Any, Any] = {}
        self._symbols: dict[tuple[str, int], Any] = {}

    def static(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the tensor without its data."""
        return self.mode.from_tensor(x, static_shapes=True)

    def resized(self, x: torch.Tensor, sizes: Mapping[int, Any]) -> torch.Tensor:
        """Returns the contiguous tensor without its data, with other lengths of the given axes."""
        shape = [sizes.get(i, n) for i, n in enumerate(x.shape)]
        stride: list[Any] = [1] * x.ndim
        for i in reversed(range(x.ndim - 1)):
            stride[i] = shape[i + 1] * stride[i + 1]
        if all(i == 0 for i in sizes):
            stride = list(x.stride())
        return self.tensor(shape, stride, x.dtype, x.device).requires_grad_(x.requires_grad)

    def symbol(self, name: str, axis: int, length: int) -> Any:
        """Returns the symbol of an axis of the named input, which is so long in the example."""
        if (name, axis) not in self._symbols:
            # An export names the symbol after this.
            source = TensorPropertySource(ConstantSource(f"L['{name}']"), TensorProperty.SIZE, axis)
            self._symbols[name, axis] = self._env.create_symbol(
                length, source, DimDynamic.DYNAMIC, None
            )
        return self._symbols[name, axis]

    def number(self, expression: Any, example: Any) -> Any:
        """Returns what an expression over the symbols is worth, given its value in the example."""
        if expression.is_Integer:
            return int(expression)
        if expression not in self._numbers:
            make = (
                self._env.create_symintnode
                if isinstance(example, int)
                else self._env.create_symfloatnode
            )
            self._numbers[expression] = make(expression, hint=example)
        return self._numbers[expression]

    def condition(self, expression: Any) -> Any:
        """Returns a comparison over the symbols, as a boolean that is known at run time only."""
        return self._env.create_symboolnode(expression)

    def tensor(
        self, shape: Sequence[Any], stride: Sequence[Any], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Returns a tensor of these sizes."""
        return _fake(self.mode, shape, stride, dtype, device)


def input_codegen(
    names: list[str], in_spec: pytree.TreeSpec, out_spec: pytree.TreeSpec
) -> fx.graph.CodeGen:
    """Makes a graph take and return values that are nested in the given way."""
    return fx.graph._PyTreeCodeGen(fx.graph._PyTreeInfo(names, in_spec, out_spec))


class Symbol(NamedTuple):
    """A free size: its value in the example, None where that depends on data, and its bounds, None where none."""

    hint: int | None
    low: int | None
    high: int | None
    positive: bool


# What sizes are computed with, by the names of the classes. Shifts are missing: 1 << n fills the memory.
SIZE_FUNCTIONS: dict[str, Any] = {
    **{
        name: getattr(sympy, name)
        for name in (
            *("Add", "Mul", "Pow", "And", "Or", "Not"),
            *("Equality", "Unequality", "LessThan", "StrictLessThan"),
            *("GreaterThan", "StrictGreaterThan"),
        )
    },
    **{
        name: getattr(sympy_functions, name)
        for name in (
            *(
                "FloorDiv",
                "ModularIndexing",
                "Mod",
                "PythonMod",
                "CleanDiv",
                "CeilDiv",
                "Max",
                "Min",
            ),
            *("CeilToInt", "FloorToInt", "TruncToInt", "TruncToFloat", "RoundToInt", "ToFloat"),
            *("IntTrueDiv", "FloatTrueDiv", "PowByNatural", "FloatPow", "Identity", "Where"),
            *("OpaqueUnaryFn_sqrt", "OpaqueUnaryFn_log2"),
        )
    },
}


def symbols_of(number: torch.SymInt | torch.SymFloat | torch.SymBool) -> dict[str, Symbol]:
    """The symbols of a number that is known at run time only."""
    env: Any = number.node.shape_env
    found = dict[str, Symbol]()
    hints = getattr(env, "backed_var_to_val", None)
    hints = env.var_to_val if hints is None else hints  # before torch 2.11
    for symbol in number.node.expr.free_symbols:
        bounds, hint = env.var_to_range.get(symbol), hints.get(symbol)
        low, high = (None, None) if bounds is None else map(_bound, (bounds.lower, bounds.upper))
        found[symbol.name] = Symbol(
            None if hint is None else int(hint), low, high, bool(symbol.is_positive)
        )
    return found


def _bound(limit: Any) -> int | None:
    return int(limit) if limit.is_Integer else None


class NamedSizes:
    """Tensors without data, and numbers, whose sizes are expressions over symbols of known names."""

    def __init__(self) -> None:
        self._env = ShapeEnv(tracked_fakes=[])
        self.mode = FakeTensorMode(shape_env=self._env, allow_non_fake_inputs=True, export=True)
        self._hints: dict[Any, Any] = {}

    def add(self, name: str, facts: Symbol) -> Any:
        """The symbol, known to this from here on."""
        symbol = sympy.Symbol(name, integer=True, positive=True if facts.positive else None)
        if facts.hint is None:
            self._reserve(name)
        else:
            self._hints[symbol] = sympy.Integer(facts.hint)
            known = getattr(self._env, "add_backed_var_to_val", None)
            (known or self._env.add_var_to_val)(symbol, facts.hint)
        self._env.constrain_symbol_range(
            symbol,
            compiler_min=-int_oo if facts.low is None else facts.low,
            compiler_max=int_oo if facts.high is None else facts.high,
        )
        return symbol

    def _reserve(self, name: str) -> None:
        """Lets torch give another name to the next size that depends on data."""
        number = name.lstrip("u")
        if number.isdecimal():
            self._env.unbacked_symint_counter = max(
                self._env.unbacked_symint_counter, int(number) + 1
            )

    def number(self, expression: Any) -> Any:
        """What an expression of sympy is worth: a plain number, or one that is known at run time only."""
        if expression.is_Integer:
            return int(expression)
        if expression.is_Float:
            return float(expression)
        if expression in (sympy.true, sympy.false):
            return bool(expression)
        if expression.is_Boolean or expression.is_Relational:
            return self._env.create_symboolnode(expression)
        known = expression.free_symbols <= self._hints.keys()
        hint = expression.xreplace(self._hints) if known else None
        if expression.is_integer:
            return self._env.create_symintnode(expression, hint=None if hint is None else int(hint))
        return self._env.create_symfloatnode(expression, hint=None if hint is None else float(hint))

    def tensor(
        self, shape: Sequence[Any], stride: Sequence[Any], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """A tensor of these sizes."""
        return _fake(self.mode, shape, stride, dtype, device)


def is_dispatched(op: torch._ops.OpOverload[Any, Any]) -> bool:
    """Whether an operator has kernels; what only TorchScript knows may read and write files."""
    return bool(torch._C._dispatch_has_kernel(op.name()))  # type: ignore[no-untyped-call]


def find_overload(
    namespace: str, name: str, overload: str
) -> torch._ops.OpOverload[Any, Any] | None:
    """The operator in `torch.ops`; None where no library that was imported has it."""
    space = getattr(torch.ops, namespace, None)
    packet = getattr(space, name, None) if isinstance(space, torch._ops._OpNamespace) else None
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return None
    known = overload in packet.overloads()  # type: ignore[no-untyped-call]
    return getattr(packet, overload) if known else None


def nesting_parts(spec: pytree.TreeSpec) -> tuple[Any, Any, list[pytree.TreeSpec]] | None:
    """Class, context and parts of how a value is nested; None for what is not nested."""
    if spec.is_leaf():
        return None
    return spec.type, spec.context, list(spec_children(spec))


def nesting(kind: Any, context: Any, parts: list[pytree.TreeSpec]) -> pytree.TreeSpec:
    """How a value of a class is nested."""
    return pytree.TreeSpec(kind, context, parts)


def nesting_name(kind: type) -> str:
    """The name of a class that is registered with pytrees, or ""."""
    known = pytree.SUPPORTED_SERIALIZED_TYPES.get(kind)
    if known is None:
        return ""
    if known.serialized_type_name != pytree.NO_SERIALIZED_TYPE_NAME_FOUND:
        return known.serialized_type_name
    return f"{kind.__module__}.{kind.__qualname__}"


def nesting_class(name: str) -> type | None:
    """The class of that name which somebody registered with pytrees."""
    known = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(name)
    if known is not None and nesting_name(known) == name:
        return known
    return next((k for k in pytree.SUPPORTED_NODES if nesting_name(k) == name), None)


def spec_children(spec: pytree.TreeSpec) -> list[pytree.TreeSpec]:
    """Returns how the children of a container are nested; the attribute has another name in each version."""
    return spec.children() if hasattr(spec, "children") else spec.children_specs


def multiple(size: Any) -> tuple[str, int] | None:
    """Returns symbol and factor if a size is a multiple of one symbol."""
    factor, symbol = size.node.expr.as_coeff_Mul()
    return (str(symbol), int(factor)) if symbol.is_symbol and factor.is_integer else None


def export_guards(inputs: Sequence[Any]) -> list[Any]:
    """Returns the comparisons of free sizes that an export found to hold for its graph.

    Those with 0 and 1 are left out, which operators make by the thousand to see whether memory is contiguous.

    Args:
        inputs: the inputs, as tensors without data.
    """
    mode = fake_mode_of(inputs)
    env: Any = None if mode is None else mode.shape_env
    found: dict[Any, Any] = {}
    known = {
        s
        for x in inputs
        if isinstance(x, torch.Tensor)
        for n in cast("tuple[Any, ...]", x.shape)
        if isinstance(n, torch.SymInt)
        for s in n.node.expr.free_symbols
    }
    for guard in env.guards if env is not None else ():
        expression = guard.expr.xreplace(env.replacements)
        trivial = isinstance(expression, sympy.Ne) and expression.rhs in (0, 1)
        if expression.free_symbols and expression.free_symbols <= known and not trivial:
            found[expression] = env.create_symboolnode(expression)
    return [*found.values()]


class _Code(PythonPrinter):
    """Writes expressions over sizes as Python code, with other names for the symbols."""

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self._names = names

    def _print_Symbol(self, expr: Any) -> str:  # noqa: N802 (the name says which)
        return self._names[str(expr)]

    def _print_Unequality(self, expr: Any) -> str:  # noqa: N802
        return f"{self.parenthesize(expr.lhs, 36)} != {self.parenthesize(expr.rhs, 36)}"


def size_code(number: Any, names: Mapping[str, str]) -> str | None:
    """Returns Python code that computes a number or condition that is known at run time only.

    Args:
        number: a symbolic number, or an expression of sympy.
        names: the code of each symbol.

    Returns:
        The code; None where a symbol has none, or a function of sizes has none.
    """
    expression = number.node.expr if hasattr(number, "node") else number
    if not {str(s) for s in expression.free_symbols} <= names.keys():
        return None
    try:
        return str(_Code(names).doprint(expression))
    except NotImplementedError:
        return None


class _CheckedCodeGen(fx.graph._PyTreeCodeGen):
    """Code that checks its inputs first.

    Args:
        info: how inputs and outputs are nested.
        lines: lines of code that come after the inputs were unpacked.
        known: what the lines refer to, by name.
        flatten: unpacks the inputs, given their names, the inputs and how they are nested; None for torch's own.
    """

    def __init__(
        self, info: Any, lines: Sequence[str], known: Mapping[str, Any], flatten: Any
    ) -> None:
        super().__init__(info)
        self._lines, self._known, self._flatten = lines, known, flatten

    def gen_fn_def(self, *args: Any, **kwargs: Any) -> str:
        text = super().gen_fn_def(*args, **kwargs)
        if self._flatten is not None:
            names = tuple(n for n in self.pytree_info.orig_args if n != "self")
            text = text.replace(
                "fx_pytree.tree_flatten_spec(", f"{self._flatten.__name__}({names}, "
            )
        return "\n    ".join([text, *self._lines])

    def additional_globals(self) -> list[tuple[str, Any]]:
        flatten = () if self._flatten is None else ((self._flatten.__name__, self._flatten),)
        return [*super().additional_globals(), *self._known.items(), *flatten]


def check_in_code(
    graph: fx.Graph,
    lines: Sequence[str],
    known: Mapping[str, Any],
    flatten: Callable[..., Any] | None,
) -> None:
    """Makes the code of a captured graph check its inputs first; the arguments are those of the code generator."""
    info = graph._codegen.pytree_info  # type: ignore[attr-defined]
    graph.set_codegen(_CheckedCodeGen(info, lines, known, flatten))


def aoti_package(exported: torch.export.ExportedProgram, path: Path) -> None:
    """Compiles an exported program with AOTInductor, and writes the package to a file that ends in `.pt2`."""
    torch._inductor.aoti_compile_and_package(exported, package_path=str(path))


def aoti_load(path: Path) -> Callable[..., Any]:
    """The function in a package that `aoti_package` wrote."""
    found: Callable[..., Any] = torch._inductor.aoti_load_package(str(path))
    return found
