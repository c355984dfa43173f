"""Captures an nn.Module, a GraphModule or an ExportedProgram as a `Program`, through `torch.export`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from fxprune.capture.attributes import attribute_remarks
from fxprune.capture.caches import cache_remarks, register_caches
from fxprune.capture.dynamic import Asked, asked_for
from fxprune.capture.failure import at_fixed_batch, first_line, to_capture_error
from fxprune.capture.follow import Following, find_following
from fxprune.capture.functions import Functions
from fxprune.capture.generalise import trace
from fxprune.capture.mode_check import ModeCheck, Suspects
from fxprune.capture.mode_flags import flags_in_other_mode
from fxprune.capture.modes import guess_training, mark_modes, mode_remark
from fxprune.capture.normalise import normalise
from fxprune.capture.untraced import untraced_seen
from fxprune.errors import CaptureError
from fxprune.graph.gc_pause import without_collection
from fxprune.graph.inputs import GUARDS
from fxprune.graph.program import Program, TracedModule, build_module, share_tensors
from fxprune.graph.sizes import symbolic_axes
from fxprune.process.state import callers_device, undisturbed
from fxprune.remark import Remark
from fxprune.stand_in import stand_in
from fxprune.torch_private import export_guards, static_size, unlogged_failures, without_stderr

Watch = Callable[[nn.Module], AbstractContextManager[None]]


@dataclass(frozen=True)
class _Inputs:
    """The example inputs of one export."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> _Inputs:
        args, kwargs = pytree.tree_map_only(torch.Tensor, change, (self.args, self.kwargs))
        return _Inputs(args, kwargs)

    def apart(self) -> _Inputs:
        """Each tensor once: of one that is given twice, a graph would read only one of the two inputs."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        if len(set(map(id, tensors))) == len(tensors):
            return self
        seen = set[int]()

        def once(x: torch.Tensor) -> torch.Tensor:
            if id(x) in seen:
                return x.detach().clone().requires_grad_(x.requires_grad)
            seen.add(id(x))
            return x

        return self.map(once)

    def batched(self) -> list[torch.Tensor]:
        """Returns the tensors whose axis 0 is as long as that of the first tensor."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        tensors = [x for x in leaves if isinstance(x, torch.Tensor) and x.ndim]
        return [x for x in tensors if x.shape[0] == tensors[0].shape[0]]


@undisturbed()
@without_collection()
def capture(
    model: nn.Module | ExportedProgram,
    args: torch.Tensor | tuple[Any, ...] | list[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
    backward: bool | None = None,
) -> Program:
    """Captures a model as a `Program`; the model is not changed, and the program shares its tensors.

    Every axis of the inputs is free of which the network takes another length, such as the batch, the sequence, height
    and width: see `Program.free_axes`.

    Args:
        model: an nn.Module, a GraphModule made by any torch.fx tool, or an ExportedProgram.
        args: the example positional inputs; a single tensor stands for a tuple of one.
        kwargs: the example keyword inputs.
        dynamic_batch: with False and without `dynamic_shapes`, every input keeps the sizes of the example.
        dynamic_shapes: which axes may be free: "all", as by default; "batch"; or as `torch.export.export` takes it: a
            dict by the names of the inputs, or a tuple by position, of dicts by axis. Of an axis, `Dim.AUTO` is free
            where the network allows it, `Dim.DYNAMIC` or `Dim("name", min=..., max=...)` has to be, and `Dim.STATIC`
            is not; nor is what is not named.
        backward: keep custom autograd Functions as calls, with their backward; else the operators of their
            forward are captured, which can be pruned. By default, kept where the model is in train mode.

    Raises:
        CaptureError: the model cannot be exported; or an axis that has to be free is not; or `dynamic_shapes` does not
            fit the inputs.
    """
    if isinstance(model, ExportedProgram):
        return _from_exported(model, _example_inputs(model, args, kwargs))
    inputs = _checked_inputs(model, args, kwargs)
    register_caches()
    functions = Functions(
        type(model).__name__, keep=model.training if backward is None else backward
    )
    with unlogged_failures():
        suspects = Suspects(model)
        given = _on_device_of(model, inputs)
        with functions.observed():
            watch = partial(_watched, suspects, functions)
            wish = _Wish(dynamic_shapes, free=dynamic_batch)
            traced, remarks = _trace_free(model, given, wish, watch)
        following, by_dtype = find_following(model, given.args, given.kwargs, traced.module)
        check = suspects.check(inputs.args, inputs.kwargs)
    module, more = _build(traced.module, model, check, following, given)
    return Program(
        module,
        inputs.args,
        inputs.kwargs,
        free_batch=_batch_is_free(module.graph),
        name=type(model).__name__,
        remarks=(
            *remarks,
            *more,
            *by_dtype,
            *functions.remarks(),
            *attribute_remarks(model, suspects.attributes),
            *cache_remarks(type(model).__name__, traced.out_spec),
        ),
    )


def _example_inputs(
    exported: ExportedProgram, args: Any, kwargs: Mapping[str, Any] | None
) -> _Inputs:
    if args is None and not kwargs:
        args, kwargs = exported.example_inputs or (None, None)
    return _checked_inputs(exported.graph_module, args, kwargs)


def _from_exported(exported: ExportedProgram, inputs: _Inputs) -> Program:
    module, remarks = _build(_unlifted(exported).module, None, ModeCheck())
    return Program(
        module,
        inputs.args,
        inputs.kwargs,
        free_batch=_batch_is_free(module.graph),
        name="ExportedProgram",
        remarks=tuple(remarks),
    )


def _checked_inputs(model: object, args: Any, kwargs: Mapping[str, Any] | None) -> _Inputs:
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"cannot capture a {type(model).__name__}",
            why="only an nn.Module, a torch.fx GraphModule or an ExportedProgram can be captured",
            do="pass the model itself",
        )
    if args is None and not kwargs:
        raise CaptureError(
            "there is no example input",
            where=type(model).__name__,
            why="torch.export runs the model once on tensors without data to record it",
            do="pass a batch of the right shape: capture(model, torch.randn(2, 3, 224, 224))",
        )
    given: object = kwargs
    if given is not None and not isinstance(given, Mapping):
        raise CaptureError(
            f"kwargs is a {type(given).__name__}, not a mapping of names to inputs",
            where=type(model).__name__,
            do='write it as kwargs={"mask": mask}',
        )
    if isinstance(args, Mapping):
        raise CaptureError(
            "args is a mapping, not a tuple of inputs",
            where=type(model).__name__,
            do="pass it as kwargs=...",
        )
    positional = tuple(args) if isinstance(args, tuple | list) else () if args is None else (args,)
    return _Inputs(positional, dict(kwargs or {})).apart()


def _on_device_of(model: nn.Module, inputs: _Inputs) -> _Inputs:
    """Returns the inputs, moved to the meta device if the model is there."""
    if any(p.is_meta for p in model.parameters()):
        return inputs.map(lambda x: x.to("meta"))
    return inputs


@dataclass(frozen=True)
class _Wish:
    """What the caller wants to be free.

    Attributes:
        shapes: the argument `dynamic_shapes`.
        free: whether the batch is to be tried where there is none.
    """

    shapes: Any
    free: bool

    def of(self, model: nn.Module, inputs: _Inputs) -> Asked:
        return asked_for(model, inputs.args, inputs.kwargs, self.shapes, free=self.free)


def _trace_free(
    model: nn.Module, inputs: _Inputs, wish: _Wish, watch: Watch
) -> tuple[_Traced, list[Remark]]:
    """Records the network's operators; exports it where a recording does not suffice."""
    asked = wish.of(model, inputs)
    if wish.free or any(axis == 0 for _, axis in asked.tried):
        longer = _at_least_two(inputs)
        asked = wish.of(model, longer)
    else:
        longer = inputs
    if asked.any and (found := _recorded(model, longer, asked, watch)) is not None:
        return found, []
    by_name = not isinstance(wish.shapes, str | None)
    exported, remarks = _export_free(model, inputs, longer, asked, watch, by_name=by_name)
    traced = _unlifted(exported)
    places = traced.module.graph.find_nodes(op="placeholder")
    if places and asked.any:
        places[0].meta[GUARDS] = export_guards([n.meta.get("val") for n in places])
    return traced, remarks


class _Traced(NamedTuple):
    """A graph with get_attr nodes for parameters, and the nesting of its outputs."""

    module: fx.GraphModule
    out_spec: pytree.TreeSpec


def _recorded(model: nn.Module, inputs: _Inputs, asked: Asked, watch: Watch) -> _Traced | None:
    try:
        with _running(model) as twin:
            found = trace(twin, inputs.args, inputs.kwargs, asked, partial(watch, twin))
    except Exception:  # the export says what is wrong with the network, if anything is
        return None
    tree = nn.Module()
    share_tensors(model, tree)
    for name, constant in found.constants.items():
        _add(tree, name, constant)
    return _Traced(fx.GraphModule(tree, found.graph), found.out_spec)


def _unlifted(exported: ExportedProgram) -> _Traced:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Traced(exported.module(check_guards=False), exported.call_spec.out_spec)


def _export_free(
    model: nn.Module,
    inputs: _Inputs,
    longer: _Inputs,
    asked: Asked,
    watch: Watch,
    *,
    by_name: bool,
) -> tuple[ExportedProgram, list[Remark]]:
    """Exports with free axes, or with the sizes of the example inputs if this fails."""
    batch = Asked(frozenset(a for a in asked.tried if a in _batch_axes(longer)))
    if not by_name:
        cheap = _whole_axes(longer) | _known_axes(model)
        asked = Asked(batch.tried | (asked.tried & cheap))
    exported: ExportedProgram | None = None
    failed: str | Exception = ""
    if asked.tried != batch.tried or asked.required:
        exported, failed = _attempt(model, longer, watch, asked, batch)
    if exported is None and asked.required:
        raise _not_free(model, failed)
    if exported is None and batch.any:
        exported, failed = _attempt(model, longer, watch, batch, batch)
    if exported is not None:
        return exported, []
    if isinstance(failed, Exception):
        certain = at_fixed_batch(model, inputs.args, inputs.kwargs, failed)
        if certain is not None:
            raise to_capture_error(model, certain, (inputs.args, inputs.kwargs)) from failed
    why = _in_words(failed)
    try:
        exported = _export(model, inputs, watch, Asked(frozenset()))
    except CaptureError:
        raise
    except Exception as error:
        given = inputs.args, inputs.kwargs
        raise to_capture_error(model, error, given, why) from error
    return exported, [_batch_fixed(model, inputs, why)] if why and batch.any else []


def _attempt(
    model: nn.Module, inputs: _Inputs, watch: Watch, asked: Asked, batch: Asked
) -> tuple[ExportedProgram | None, str | Exception]:
    """Exports with free axes; None if this fails, or the batch is fixed, with the reason."""
    try:
        exported = _export(model, inputs, watch, asked)
    except CaptureError:
        raise
    except Exception as error:
        return None, error
    if batch.any and not _batch_is_free(exported.graph):
        return None, "torch.export replaced axis 0 of the inputs by a fixed number"
    if fixed := _fixed_axis(exported, asked):
        return None, fixed
    return exported, ""


def _batch_axes(inputs: _Inputs) -> set[tuple[int, int]]:
    """Axis 0 of the tensors that share the batch, by their numbers among the leaves."""
    batched = {id(x) for x in inputs.batched()}
    leaves = pytree.tree_leaves((inputs.args, inputs.kwargs))
    return {(i, 0) for i, x in enumerate(leaves) if id(x) in batched}


def _whole_axes(inputs: _Inputs) -> set[tuple[int, int]]:
    """Axes of tensors of whole numbers, which are sequences; of an image, symbolic sizes can take an export minutes."""
    leaves = pytree.tree_leaves((inputs.args, inputs.kwargs))
    whole = (
        (i, x)
        for i, x in enumerate(leaves)
        if isinstance(x, torch.Tensor) and not (x.is_floating_point() or x.is_complex())
    )
    return {(i, axis) for i, x in whole for axis in range(x.ndim)}


def _known_axes(model: nn.Module) -> set[tuple[int, int]]:
    """The free axes of a graph that was captured before."""
    places = model.graph.find_nodes(op="placeholder") if isinstance(model, fx.GraphModule) else []
    return {(i, axis) for i, n in enumerate(places) for axis in symbolic_axes(n.meta.get("val"))}


def _fixed_axis(exported: ExportedProgram, asked: Asked) -> str:
    """Which axis that has to be free is not; "" if all are."""
    names = set(exported.graph_signature.user_inputs)
    places = [n for n in exported.graph.find_nodes(op="placeholder") if n.name in names]
    for i, axis in asked.required:
        value = places[i].meta["val"] if i < len(places) else None
        if isinstance(value, torch.Tensor) and static_size(value.shape[axis]) is not None:
            return f"torch.export fixed axis {axis} of {places[i].name}"
    return ""


def _in_words(why: str | Exception) -> str:
    return why if isinstance(why, str) else f"{type(why).__name__}: {first_line(why)}"


def _not_free(model: nn.Module, why: str | Exception) -> CaptureError:
    return CaptureError(
        "an axis that has to be free is not",
        where=type(model).__name__,
        why=_in_words(why),
        do="write Dim.AUTO for it, which leaves it as it is where the network needs that",
    )


def _batch_fixed(model: nn.Module, inputs: _Inputs, why: str) -> Remark:
    return Remark(
        "analysis",
        "capture.batch-fixed",
        type(model).__name__,
        f"the batch size is fixed at {inputs.batched()[0].shape[0]}",
        why,
        "to leave it free, write the batch size as x.shape[0] or -1 in the model's forward",
    )


def _at_least_two(inputs: _Inputs) -> _Inputs:
    """Repeats a batch of 1, which torch.export would treat as a constant."""
    one = {id(x) for x in inputs.batched() if x.shape[0] == 1}
    repeated: dict[int, torch.Tensor] = {}

    def twice(x: torch.Tensor) -> torch.Tensor:
        if id(x) not in one:
            return x
        return repeated.setdefault(id(x), torch.cat((x, x)).detach())

    return inputs.map(twice) if one else inputs


@contextmanager
def _watched(suspects: Suspects, functions: Functions, twin: nn.Module) -> Iterator[None]:
    """Around the first run of a stand-in in which its operators are recorded."""
    with suspects.watch(twin), functions.first_run():
        yield


@contextmanager
def _running(model: nn.Module) -> Iterator[nn.Module]:
    """A stand-in of the model, around what runs it while it is recorded."""
    seen = untraced_seen(type(model).__name__)
    with stand_in(model) as twin, callers_device(), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        with seen:
            yield twin


def _export(model: nn.Module, inputs: _Inputs, watch: Watch, asked: Asked) -> ExportedProgram:
    shapes = None
    if asked.any:
        collection = ShapesCollection()  # type: ignore[no-untyped-call]
        leaves = pytree.tree_leaves((inputs.args, inputs.kwargs))
        by_tensor: dict[int, dict[int, Any]] = {}
        for i, axis in sorted(asked.tried):
            dim = asked.named.get((i, axis), Dim.AUTO)
            by_tensor.setdefault(id(leaves[i]), {})[axis] = dim
        for x in leaves:
            if id(x) in by_tensor:
                collection[x] = by_tensor[id(x)]
        shapes = collection.dynamic_shapes(  # type: ignore[no-untyped-call]
            model, inputs.args, inputs.kwargs
        )
    # On failure torch.export prints the graph so far to stderr; the CaptureError says what matters.
    with _running(model) as twin, watch(twin), without_stderr():
        exported = torch.export.export(
            twin, inputs.args, inputs.kwargs, dynamic_shapes=shapes, strict=False
        )
        _refuse_new_tensors(model, twin)
        return exported


def _refuse_new_tensors(model: nn.Module, twin: nn.Module) -> None:
    """Refuses what torch.export gets wrong without a word: the graph would make such a tensor anew at each call."""
    for kind, named in (
        ("buffer", nn.Module.named_buffers),
        ("parameter", nn.Module.named_parameters),
    ):
        if made := dict(named(twin)).keys() - dict(named(model)).keys():
            raise CaptureError(
                f"the model makes a {kind} while it runs",
                where=f"{type(model).__name__}, {kind} {min(made)}",
                why=f"torch.export does not record a {kind} that is not there before",
                do="make it in __init__, or call the model once before it is captured",
            )


def _batch_is_free(graph: fx.Graph) -> bool:
    """Returns whether axis 0 of some input is symbolic."""
    values = [n.meta.get("val") for n in graph.find_nodes(op="placeholder")]
    return any(
        isinstance(v, torch.Tensor) and v.ndim and static_size(v.shape[0]) is None for v in values
    )


def _build(
    unlifted: fx.GraphModule,
    model: nn.Module | None,
    check: ModeCheck,
    following: Sequence[Following] = (),
    inputs: _Inputs | None = None,
) -> tuple[TracedModule, list[Remark]]:
    """Builds a `TracedModule` from an exported graph: normalised, with its mode switches marked."""
    remarks = normalise(unlifted, following)
    tree = _skeleton(unlifted if model is None else model, unlifted)
    training = guess_training(unlifted.graph) if model is None else model.training
    other: dict[fx.Node, Any] = {}
    if model is not None and inputs is not None:
        other = flags_in_other_mode(model, inputs.args, inputs.kwargs, unlifted.graph)
    paths = [*check.fixed, *mark_modes(unlifted.graph, model, training, check, other)]
    remarks += mode_remark(model, paths, training, check.failure)
    return build_module(tree, unlifted.graph, training=training), remarks


def _skeleton(model: nn.Module, unlifted: fx.GraphModule) -> nn.Module:
    """Returns a module tree with the tensors of `model` and whatever else the graph refers to."""
    tree = nn.Module()
    share_tensors(model, tree)
    used = {n.target for n in unlifted.graph.find_nodes(op="get_attr")}
    for name in sorted(cast("set[str]", used)):
        path, _, leaf = name.rpartition(".")
        owner = _grow(tree, path)
        value = _attribute(unlifted, name)
        if isinstance(value, fx.GraphModule):
            owner._modules[leaf] = value
        elif leaf not in owner._parameters and leaf not in owner._buffers:
            _add(owner, leaf, value)
    return tree


def _grow(tree: nn.Module, path: str) -> nn.Module:
    for part in path.split(".") if path else ():
        if part not in tree._modules:
            tree._modules[part] = nn.Module()
        tree = cast(nn.Module, tree._modules[part])
    return tree


def _add(owner: nn.Module, leaf: str, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        owner.register_buffer(leaf, value, persistent=False)
    else:
        setattr(owner, leaf, value)


def _attribute(module: nn.Module, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value
