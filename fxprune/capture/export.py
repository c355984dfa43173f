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

from fxprune.capture.caches import cache_remarks, register_caches
from fxprune.capture.failure import at_fixed_batch, first_line, to_capture_error
from fxprune.capture.follow import Following, find_following
from fxprune.capture.functions import Functions
from fxprune.capture.generalise import trace
from fxprune.capture.mode_check import ModeCheck, Suspects
from fxprune.capture.mode_flags import flags_in_other_mode
from fxprune.capture.modes import guess_training, mark_modes, mode_remark
from fxprune.capture.normalise import normalise
from fxprune.capture.numbers import number_remarks
from fxprune.capture.untraced import untraced_seen
from fxprune.errors import CaptureError
from fxprune.graph.gc_pause import without_collection
from fxprune.graph.program import Program, TracedModule, build_module, share_tensors
from fxprune.process.state import callers_device, undisturbed
from fxprune.remark import Remark
from fxprune.stand_in import stand_in
from fxprune.torch_private import static_size, unlogged_failures, without_stderr

Watch = Callable[[nn.Module], AbstractContextManager[None]]


@dataclass(frozen=True)
class _Inputs:
    """The example inputs of one export."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> _Inputs:
        args, kwargs = pytree.tree_map_only(torch.Tensor, change, (self.args, self.kwargs))
        return _Inputs(args, kwargs)

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
    backward: bool | None = None,
) -> Program:
    """Captures a model as a `Program`; the model is not changed, and the program shares its tensors.

    Args:
        model: an nn.Module, a GraphModule made by any torch.fx tool, or an ExportedProgram.
        args: the example positional inputs; a single tensor stands for a tuple of one.
        kwargs: the example keyword inputs.
        dynamic_batch: leave the batch size (axis 0 of the tensor inputs) free.
        backward: keep custom autograd Functions as calls, with their backward; else the operators of their
            forward are captured, which can be pruned. By default, kept where the model is in train mode.

    Raises:
        CaptureError: the model cannot be exported.
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
            traced, free, remarks = _trace_batched(model, given, dynamic_batch, watch)
        following, by_dtype = find_following(model, given.args, given.kwargs, traced.module)
        check = suspects.check(inputs.args, inputs.kwargs)
    module, more = _build(traced.module, model, check, following, given)
    return Program(
        module,
        inputs.args,
        inputs.kwargs,
        free_batch=free,
        name=type(model).__name__,
        remarks=(
            *remarks,
            *more,
            *by_dtype,
            *functions.remarks(),
            *number_remarks(model, suspects.numbers),
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
    return _Inputs(positional, dict(kwargs or {}))


def _on_device_of(model: nn.Module, inputs: _Inputs) -> _Inputs:
    """Returns the inputs, moved to the meta device if the model is there."""
    if any(p.is_meta for p in model.parameters()):
        return inputs.map(lambda x: x.to("meta"))
    return inputs


def _trace_batched(
    model: nn.Module, inputs: _Inputs, dynamic: bool, watch: Watch
) -> tuple[_Traced, bool, list[Remark]]:
    """Records the network's operators; exports it where a recording does not suffice."""
    if dynamic and (found := _recorded(model, _at_least_two(inputs), watch)) is not None:
        return found, True, []
    exported, free, remarks = _export_batched(model, inputs, dynamic, watch)
    return _unlifted(exported), free, remarks


class _Traced(NamedTuple):
    """A graph with get_attr nodes for parameters, and the nesting of its outputs."""

    module: fx.GraphModule
    out_spec: pytree.TreeSpec


def _recorded(model: nn.Module, inputs: _Inputs, watch: Watch) -> _Traced | None:
    try:
        with _running(model) as twin:
            found = trace(twin, inputs.args, inputs.kwargs, partial(watch, twin))
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


def _export_batched(
    model: nn.Module, inputs: _Inputs, dynamic: bool, watch: Watch
) -> tuple[ExportedProgram, bool, list[Remark]]:
    """Exports with a free batch size, or with that of the example inputs if this fails."""
    why = ""
    if dynamic and inputs.batched():
        try:
            exported = _export(model, _at_least_two(inputs), watch, dynamic=True)
        except CaptureError:
            raise
        except Exception as error:
            certain = at_fixed_batch(model, inputs.args, inputs.kwargs, error)
            if certain is not None:
                raise to_capture_error(model, certain, (inputs.args, inputs.kwargs)) from error
            why = f"{type(error).__name__}: {first_line(error)}"
        else:
            if _batch_is_free(exported.graph):
                return exported, True, []
            why = "torch.export replaced axis 0 of the inputs by a fixed number"
    try:
        exported = _export(model, inputs, watch, dynamic=False)
    except CaptureError:
        raise
    except Exception as error:
        given = inputs.args, inputs.kwargs
        raise to_capture_error(model, error, given, why) from error
    return exported, False, [_batch_fixed(model, inputs, why)] if why else []


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


def _export(model: nn.Module, inputs: _Inputs, watch: Watch, *, dynamic: bool) -> ExportedProgram:
    shapes = None
    if dynamic:
        collection = ShapesCollection()  # type: ignore[no-untyped-call]
        for x in inputs.batched():
            collection[x] = {0: Dim.AUTO}
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
