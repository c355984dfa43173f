"""Partial capture: the largest submodules that export, where the whole model does not.

The model runs once while the inputs of its submodules are recorded; from the top down, every call
that exports becomes a part. One Program holds all parts side by side, under the model's own names:
its inputs are theirs, so whatever crosses the border between a part and the rest is frozen, and
solving, planning, shrinking and verifying need to know nothing of parts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from os import PathLike
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.axes import Axes
from fxprune.capture import capture
from fxprune.capture.failure import first_line, own_line
from fxprune.errors import CaptureError, FxpruneError, PlanError, VerifyError
from fxprune.evaluate import flat_inputs
from fxprune.io.parts import load_parts, put_state
from fxprune.plan import Plan, check_plan
from fxprune.program import Program, build_module, share_tensors
from fxprune.reference import Silenced
from fxprune.remark import Remark
from fxprune.solve import solve
from fxprune.torch_private import pytree_specs
from fxprune.verify import TOLERANCE, Check, relative_error
from fxprune.write_back import refuse_edits, write_tensors

Signature = tuple[str, ...]


@dataclass
class _Call:
    """One call of a submodule, and those made while it ran."""

    path: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    inner: list[_Call] = field(default_factory=list)

    def signature(self) -> Signature:
        """The path and what the inputs look like, whatever their batch."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        return (self.path, str(spec), *map(_look, leaves))


@dataclass(frozen=True)
class Part:
    """A submodule as captured for inputs of one kind.

    Attributes:
        path: its name in the model.
        program: the submodule alone, under names of its own.
        signature: what its inputs look like.
        nodes: node of `program` -> its copy in the program of all parts.
    """

    path: str
    program: Program
    signature: Signature
    nodes: dict[fx.Node, fx.Node] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Partial:
    """A model of which some submodules are captured.

    Attributes:
        program: all parts side by side; plan on this.
        model: the model, not changed.
        parts: names of the captured submodules.
        opaque: what is outside and why; nothing of it is removed.
        instances: the parts, one for each kind of input a submodule was called with.
        args: the example inputs of the model.
        kwargs: those given by name.
    """

    program: Program
    model: nn.Module
    parts: tuple[str, ...]
    opaque: tuple[Remark, ...]
    instances: tuple[Part, ...] = field(repr=False)
    args: tuple[Any, ...] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)

    def apply(self, plan: Plan, *, inplace: bool = False) -> nn.Module:
        """The model with what the plan removes gone from its parts.

        Raises:
            PlanError: the plan is for another capture, or the model's own forward cannot express it.
        """
        return _apply(self.model, check_plan(self.program, plan, solve), inplace=inplace)

    def load(self, directory: str | PathLike[str]) -> nn.Module:
        """The smaller model of a directory that `fp.save` or `fxprune prune --partial` wrote.

        Its plan is applied to this capture, whose model is of the original sizes and not changed, and the
        saved tensors are put in; tensors that the model does not list in its state stay its own.

        Raises:
            LoadError: a file is missing, truncated or altered, or of another model.
            PlanError: the plan is for another capture.
        """
        plan, state = load_parts(directory)
        smaller = copy.deepcopy(self.apply(plan))
        put_state(smaller, state, directory)
        return smaller

    def verify(self, plan: Plan, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Check:
        """Holds the smaller model against the original whose parts are silenced.

        Both run on the example inputs. Tensors of one repeated value get noise, the same in both.

        Raises:
            VerifyError: the model returns nothing that could differ.
            PlanError: the plan is for another capture, or the model's own forward cannot express it.
        """
        return _verify(self, check_plan(self.program, plan, solve), dtype, seed)


def capture_partial(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> Partial:
    """Captures the largest submodules that export.

    Args:
        model: it runs once on the example inputs; it is not changed.
        args: example positional inputs; a tensor stands for a tuple of one.
        kwargs: example keyword inputs.

    Raises:
        CaptureError: the model does not run, or no submodule with parameters exports.
    """
    args = args if isinstance(args, tuple | list) else (args,)
    found = _Parts(model)
    with _restored(model):
        found.cover(_record(model, tuple(args), dict(kwargs or {})))
    parts = tuple(found.parts.values())
    if not parts:
        raise CaptureError(
            "no submodule can be captured",
            where=type(model).__name__,
            why="; ".join(r.why for r in found.opaque[:3]),
            do="call the model on the example inputs first",
        )
    program = _join(model, parts)
    paths = tuple(dict.fromkeys(p.path for p in parts))
    return Partial(
        program, model, paths, tuple(found.opaque), parts, tuple(args), dict(kwargs or {})
    )


# Which submodules


def _look(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}[{value.dim()}]{tuple(value.shape[1:])}"
    return repr(value) if isinstance(value, int | float | str | None) else type(value).__name__


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Puts the state that a run may write back afterwards."""
    saved = [(b, b.clone()) for b in model.buffers()]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)


def _record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    """Runs the model; the tree of the calls it made."""
    root = _Call("")
    open_calls: list[_Call] = []
    with ExitStack() as hooks, torch.no_grad():
        for path, module in model.named_modules():
            before, after = _hooks(path, root, open_calls)
            for handle in (
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(after, always_call=True),
            ):
                hooks.callback(handle.remove)
        _run(model, args, kwargs)
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


def _hooks(path: str, root: _Call, open_calls: list[_Call]) -> tuple[Any, Any]:
    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        call = root if not open_calls else _Call(path)
        if open_calls:
            open_calls[-1].inner.append(call)
        call.args, call.kwargs = pytree.tree_map_only(
            torch.Tensor, lambda x: x.detach().clone(), (args, kwargs)
        )
        open_calls.append(call)

    def after(*_: Any) -> None:
        open_calls.pop()

    return before, after


class _Parts:
    """Finds the parts of a model from the top down."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._failed: set[Signature] = set()
        self.parts: dict[Signature, Part] = {}
        self.opaque: list[Remark] = []

    def cover(self, call: _Call) -> None:
        """Captures the called module, or else those that it called."""
        module = self._model.get_submodule(call.path)
        if next(module.parameters(), None) is None:
            return
        signature = call.signature()
        if signature not in self.parts and signature not in self._failed:
            self._try(call, module, signature)
        if signature in self._failed:
            for inner in call.inner:
                self.cover(inner)

    def _try(self, call: _Call, module: nn.Module, signature: Signature) -> None:
        """Captures one call, without what torch.export prints of graphs it gives up on."""
        why = _cannot_cross(call)
        if not why:
            try:
                with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                    program = capture(module, call.args, call.kwargs)
            except FxpruneError as error:
                why = error.why or error.what
            else:
                self.parts[signature] = Part(call.path, program, signature)
                return
        self._failed.add(signature)
        where = f"{call.path or 'the model'} ({type(module).__name__})"
        self.opaque.append(
            Remark("missed", "capture.opaque", where, "its own operators are not captured", why)
        )


def _cannot_cross(call: _Call) -> str:
    """Why torch.export would refuse the inputs of a call, as far as their types say."""
    for leaf in pytree.tree_leaves((call.args, call.kwargs)):
        if not isinstance(leaf, torch.Tensor | int | float | str | None):
            return f"an input is of the class {type(leaf).__name__}"
        if isinstance(leaf, torch.Tensor) and leaf.dim() and not leaf.shape[0]:
            return "an input is empty"
    return ""


# One program of all parts


def _join(model: nn.Module, parts: Sequence[Part]) -> Program:
    """The parts side by side; tensors that the rest of the model uses too are outputs, so frozen."""
    graph, tree = fx.Graph(), nn.Module()
    share_tensors(model, tree)
    args: list[Any] = []
    for i, part in enumerate(parts):
        args += _placeholders(graph, part, i)
    returned: list[fx.Node] = []
    for i, part in enumerate(parts):
        returned += _copy_part(graph, tree, part, i)
    returned += _shared_outside(graph, model, parts)
    graph.output(tuple(returned))
    graph.lint()
    module = build_module(tree, graph, training=model.training)
    remarks = tuple(r for p in parts for r in p.program.remarks)
    return Program(module, tuple(args), {}, False, type(model).__name__, remarks)


def _placeholders(graph: fx.Graph, part: Part, number: int) -> list[Any]:
    """Makes the inputs of a part; their example values."""
    for node in part.program.graph.find_nodes(op="placeholder"):
        part.nodes[node] = graph.placeholder(f"part{number}_{node.name}")
        part.nodes[node].meta = _meta(node, part.path)
    program = part.program
    return flat_inputs(program.module, program.args, program.kwargs)


def _copy_part(graph: fx.Graph, tree: nn.Module, part: Part, number: int) -> list[fx.Node]:
    """Copies the operators of a part; what it returns."""
    for node in part.program.nodes:
        if node.op in ("placeholder", "output"):
            continue
        new = graph.node_copy(node, lambda n: part.nodes[n])
        new.meta = _meta(node, part.path)
        if node.op == "get_attr":
            new.target = _adopt(tree, part, str(node.target), number)
        part.nodes[node] = new
    returned = part.program.graph.output_node().args[0]
    return [part.nodes[n] for n in pytree.tree_leaves(returned) if isinstance(n, fx.Node)]


def _meta(node: fx.Node, path: str) -> dict[str, Any]:
    """The node's metadata with module paths from the root of the model."""
    meta = dict(node.meta)
    if stack := meta.get("nn_module_stack"):
        meta["nn_module_stack"] = {k: (_under(path, p), kind) for k, (p, kind) in stack.items()}
    return meta


def _under(path: str, name: str) -> str:
    return ".".join(p for p in (path, name) if p)


def _adopt(tree: nn.Module, part: Part, name: str, number: int) -> str:
    """The name in the model of what a part calls `name`; constants of a part get one of their own."""
    value: Any = part.program.module
    for piece in name.split("."):
        value = getattr(value, piece)
    full = _under(part.path, name)
    try:
        if _get(tree, full) is value:
            return full
    except AttributeError:
        pass
    own = f"part{number}_{name.replace('.', '_')}"
    if isinstance(value, torch.Tensor):
        tree.register_buffer(own, value, persistent=False)
    else:
        setattr(tree, own, value)
    return own


def _get(tree: nn.Module, name: str) -> Any:
    value: Any = tree
    for piece in name.split("."):
        value = getattr(value, piece)
    return value


def _shared_outside(graph: fx.Graph, model: nn.Module, parts: Sequence[Part]) -> list[fx.Node]:
    """Nodes for tensors of parts that modules outside hold too, under another name."""
    inside = tuple(f"{p.path}." if p.path else "" for p in parts)
    tensors: list[tuple[str, torch.Tensor]] = list(model.named_parameters(remove_duplicate=False))
    tensors += model.named_buffers(remove_duplicate=False)
    outside = {id(t) for name, t in tensors if not name.startswith(inside)}
    shared = {id(t): name for name, t in tensors if name.startswith(inside) and id(t) in outside}
    return [graph.get_attr(name) for name in shared.values()]


# Back into the model


def _apply(model: nn.Module, plan: Plan, *, inplace: bool) -> nn.Module:
    refuse_edits(plan)
    return write_tensors(model, plan, inplace=inplace)


def _verify(partial: Partial, plan: Plan, dtype: torch.dtype, seed: int) -> Check:
    original = _with_noise(partial.model, dtype, seed)
    small = _apply(original, plan, inplace=False)
    args, kwargs = pytree.tree_map_only(
        torch.Tensor,
        lambda x: x.to(dtype) if x.is_floating_point() else x,
        (partial.args, dict(partial.kwargs)),
    )
    axes = solve(partial.program)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with _silenced(original, partial, axes, plan, dtype):
            wanted = original(*args, **kwargs)
        torch.manual_seed(seed)
        found = _run_small(small, args, kwargs)
    return _compare(found, wanted, dtype)


def _run_small(small: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return small(*args, **kwargs)
    except Exception as error:
        raise PlanError(
            f"the forward of {type(small).__name__} cannot run at the new sizes",
            where=own_line(error),
            why=f"{type(error).__name__}: {first_line(error)}",
            do="ignore the module that spells a size itself, or teach it: "
            "fxprune.write_back.register_sizes",
        ) from error


def _with_noise(model: nn.Module, dtype: torch.dtype, seed: int) -> nn.Module:
    """A copy in `dtype`; tensors of one repeated value are no longer so."""
    twin = copy.deepcopy(model).to(dtype)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.is_floating_point() and tensor.numel() > 1 and _constant(tensor):
                noise = torch.rand(tensor.shape, generator=rng, dtype=torch.float64).to(tensor)
                tensor.copy_(tensor * (0.9 + 0.2 * noise) + 0.02 * (noise - 0.5))
    return twin


def _constant(tensor: torch.Tensor) -> bool:
    return bool((tensor == tensor.reshape(-1)[:1]).all())


@contextmanager
def _silenced(
    model: nn.Module, partial: Partial, axes: Axes, plan: Plan, dtype: torch.dtype
) -> Iterator[None]:
    """Lets the parts of a copy of the model run as if what the plan removes were not there."""
    with ExitStack() as undo:
        for path in partial.parts:
            module = model.get_submodule(path)
            forward = _forward(model, path, partial, axes, plan, dtype)
            module.forward = forward
            undo.callback(vars(module).pop, "forward")
        yield


def _forward(
    model: nn.Module, path: str, partial: Partial, axes: Axes, plan: Plan, dtype: torch.dtype
) -> Callable[..., Any]:
    parts = {_single(p.signature): p for p in partial.instances if p.path == path}
    inner = model.get_submodule(path).forward

    def provide(name: str, value: torch.Tensor) -> torch.Tensor:
        """The tensor of the copy, where the part's is one of the model's."""
        try:
            own = _get(model, _under(path, name))
        except AttributeError:
            return value
        return own.detach().to(value) if isinstance(own, torch.Tensor) else value

    def forward(*args: Any, **kwargs: Any) -> Any:
        signature = _single(_Call(path, args, dict(kwargs)).signature())
        if signature in parts:
            part = parts[signature]
            runner = Silenced(part.program, _axes_of(part, axes), plan.removed, dtype, provide)
            specs = pytree_specs(part.program.graph)
            assert specs is not None, "torch.export names inputs and outputs"
            return pytree.tree_unflatten(runner.evaluate(args, kwargs), specs[1])
        if all(not isinstance(x, torch.Tensor) or not x.numel() for x in args):
            return inner(*args, **kwargs)
        raise VerifyError(
            f"{path} is called with other inputs than when it was captured",
            why=f"{signature[2:]} instead of one of {[s[2:] for s in parts]}",
            do="verify on inputs of the sizes that it was captured with",
        )

    return forward


def _single(signature: Signature) -> Signature:
    """The signature whatever the precision."""
    return tuple(s.replace("torch.float64", "torch.float32") for s in signature)


def _axes_of(part: Part, axes: Axes) -> Axes:
    """The labels by the nodes of the part alone."""
    nodes = {n: axes.nodes[twin] for n, twin in part.nodes.items()}
    marks = {n: axes.marks[twin] for n, twin in part.nodes.items() if twin in axes.marks}
    return replace(axes, nodes=nodes, marks=marks)


def _compare(found: Any, wanted: Any, dtype: torch.dtype) -> Check:
    pairs = [pytree.tree_leaves(x) for x in (found, wanted)]
    if len(pairs[0]) != len(pairs[1]):
        raise VerifyError("the smaller model returns another number of outputs than the original")
    if not any(isinstance(x, torch.Tensor) and x.numel() for x in pairs[1]):
        raise VerifyError(
            "the model returns nothing that could be compared",
            why="no detection, for one, passes its threshold on random weights",
            do="lower the threshold, or pass other example inputs",
        )
    errors = [relative_error(a, b) for a, b in zip(*pairs, strict=True)]
    worst = max(range(len(errors)), key=errors.__getitem__)
    bound = TOLERANCE[dtype]
    where = f"output {worst} (error {errors[worst]:.1e})"
    name = str(dtype).removeprefix("torch.")
    return Check(errors[worst] <= bound, errors[worst], name, bound, where, "", (), ())
