"""Whether the forward code of a model computes what a program computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from fxprune.capture.failure import first_line, own_line
from fxprune.errors import PlanError, VerifyError
from fxprune.graph.program import Program, TracedModule, build_module, named_tensors
from fxprune.process.state import callers_device, undisturbed
from fxprune.remark import Remark
from fxprune.stand_in import stand_in
from fxprune.torch_private import WithoutData, quiet_failures
from fxprune.verify.check import Check, Run, compare_runs, on_meta
from fxprune.verify.gradients import compare_gradients
from fxprune.verify.inputs import batches_of
from fxprune.verify.memory import Memory
from fxprune.verify.noise import lively, noisy
from fxprune.verify.types import ByType

Written = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]
"""From the tensors of a program, by name, to those of a model that computes the same."""

Prepare = Callable[[nn.Module], None]
"""Is given the copy of a model that will run."""

_COARSE = 1e-2  # what enlarged weights may make of rounding

_TEACH = (
    "teach the class that spells a size itself with fxprune.write_back.register_sizes, "
    "ignore that module, or use the smaller program (fp.shrink)"
)

_REPORT = (
    "report this network, or capture it with torch.export instead: "
    "fp.prune(torch.export.export(model, args), args)"
)


def forward_failed(model: nn.Module, error: Exception) -> PlanError:
    """The error to raise when the forward of a smaller model raises `error`."""
    return PlanError(
        f"the forward of {type(model).__name__} cannot run at the new sizes",
        where=own_line(error),
        why=f"{type(error).__name__}: {first_line(error)}",
        do=_TEACH,
    )


def check_sizes(
    model: nn.Module,
    program: Program,
    prepare: Prepare = lambda _: None,
    data: bool | None = None,
) -> None:
    """Runs the model's forward without data, and compares the sizes of its outputs with those of the program.

    A forward that only runs on real tensors, as one that reads a number out of a tensor does, runs on the
    example inputs instead.

    Args:
        model: the model, with some positions of its tensors gone.
        program: a program whose outputs have the sizes that are right.
        prepare: see `run_example`.
        data: see `run_example`.

    Raises:
        PlanError: the forward fails, or returns outputs of different sizes.
    """
    _compare_sizes(model, run_example(model, program, prepare, data), program)


def run_example(
    model: nn.Module,
    program: Program,
    prepare: Prepare = lambda _: None,
    data: bool | None = None,
) -> Any:
    """Runs a copy of a model without data, for inputs like the program's example; returns its outputs.

    A forward that only runs on real tensors runs on random ones.

    Args:
        model: the model; it stays as it is.
        program: of the model, perhaps as it was before.
        prepare: is given the copy first, as to register hooks.
        data: whether the forward only runs on real tensors, where that is known.

    Raises:
        PlanError: the forward fails.
    """
    try:
        if data:
            return _with_data(model, program, prepare)
        try:
            return _without_data(model, program, prepare)
        except Exception:
            if data is False or on_meta(model):
                raise
            return _with_data(model, program, prepare)
    except Exception as error:
        raise forward_failed(model, error) from error


def needs_data(model: nn.Module, program: Program) -> bool:
    """Whether the forward of a model only runs on real tensors."""
    if on_meta(model):
        return False
    try:
        _without_data(model, program, lambda _: None)
    except Exception:
        return True
    return False


def _without_data(model: nn.Module, program: Program, prepare: Prepare) -> Any:
    """The outputs of the model for the program's example, as tensors without data."""
    leaves, spec = pytree.tree_flatten((program.args, dict(program.kwargs)))
    if on_meta(model):
        leaves = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in leaves]
    with undisturbed(), stand_in(model) as twin, callers_device(), quiet_failures():
        prepare(twin)
        return WithoutData(twin, leaves, spec)()


@torch.no_grad()
def _with_data(model: nn.Module, program: Program, prepare: Prepare) -> Any:
    """The outputs of a copy of the model for random inputs like the program's example."""
    batch = next(iter(batches_of(program, seed=0)))
    with undisturbed(), stand_in(model, own_data=True) as twin, callers_device():
        prepare(twin)
        return twin(*batch.args, **batch.kwargs)


def check_numbers(
    model: nn.Module,
    small: Program,
    *,
    seed: int = 0,
    tensors: Mapping[str, torch.Tensor] | None = None,
    written: Written | None = None,
    memories: tuple[Memory, Memory] | None = None,
    factors: Collection[float] = (),
) -> None:
    """Runs the model and the smaller program, both with the model's tensors, on the same inputs.

    Then both once more with small weights enlarged, which shows what weights of a fresh network hide.
    On the meta device there are no numbers, and nothing is run.

    Args:
        model: the model, without the positions that a plan removes.
        small: the smaller program of that plan.
        seed: of the inputs.
        tensors: see `compare_model`.
        written: see `compare_model`.
        memories: of the smaller program with these tensors, and with small weights enlarged.
        factors: see `compare_model`.

    Raises:
        PlanError: the two compute different things.
        VerifyError: the smaller program fails where the model runs.
    """
    if on_meta(model):
        return
    tensors = named_tensors(model) if tensors is None else tensors
    usual, enlarged = memories or (Memory(), Memory())
    check = compare_model(
        model,
        small,
        seed=seed,
        tensors=tensors,
        written=written,
        memory=usual,
        until_bad=True,
        factors=factors,
    )
    if check.ok:
        large = compare_model(
            model,
            small,
            seed=seed,
            tensors=lively(tensors),
            written=written or dict,
            memory=enlarged,
            until_bad=True,
            factors=factors,
        )
        check = large if large.max_relative_error > _COARSE and not large.undefined else check
    if not check.ok:
        raise PlanError(
            f"the forward of {type(model).__name__} computes something other than the smaller program",
            where=check.worst_output,
            why=f"relative error {check.max_relative_error:.1e}, allowed {check.tolerance:.0e}: it derives a number "
            "from a size, as attention derives its scale from its width, and that size has changed",
            do="use the smaller program (fp.shrink), or ignore that module",
        )


def compare_model(
    model: nn.Module,
    program: Program,
    *,
    seed: int = 0,
    tensors: Mapping[str, torch.Tensor] | None = None,
    written: Written | None = None,
    memory: Memory | None = None,
    until_bad: bool = False,
    few: bool = False,
    factors: Collection[float] = (),
) -> Check:
    """Runs a model and a program, both with the model's tensors, on the same random inputs.

    Tensors of one repeated value are given noise. Both run in eval mode, unless the program's mode is fixed. Each
    output is held to the digits of the least exact type from which a difference may come (`ByType`).
    A second size of a free batch is tried where the model accepts it.

    Args:
        model: the model, whose tensors have the sizes of the program's; it stays as it is.
        program: the program that should compute the same.
        seed: of inputs, noise and random operators.
        tensors: the tensors that the program runs with; those of the model where they are the same.
        written: makes the model's tensors of these, where factors were folded into some.
        memory: of this program with the same tensors and seed.
        until_bad: stop at the first batch that does not agree.
        few: whether to run them with few rows where the batch is free, or with the example's where the model
            refuses that.
        factors: that `written` folds into tensors: values before them differ by these.

    Raises:
        VerifyError: the program fails where the model runs.
        Exception: whatever the model raises at the batch size of the program's example.
    """
    tensors = named_tensors(model) if tensors is None else tensors
    noise = noisy(tensors, seed)
    names = program.tensors().keys()
    known = {name: x for name, x in {**tensors, **noise}.items() if name in names}
    types = ByType(model, program, factors)
    state = noise if written is None else written({**tensors, **noise})
    memory = memory or Memory()

    def prepare() -> Run:
        return _running_program(program, known, model)

    found = types.watched(prepare()) if types.mixed else memory.remembering(prepare)
    return compare_runs(
        types.watched(_running(model, state, program)),
        found,
        memory.batches(program, seed, few=few),
        dtype=types.dtype,
        judge=types.judge,
        against="the model",
        seed=seed,
        may_refuse=True,
        until_bad=until_bad,
    )


def check_capture(
    model: nn.Module, program: Program, *, seed: int = 0, few: bool = False
) -> tuple[list[Check], list[Remark]]:
    """Holds a captured program against its model; returns a remark instead where the model does not run.

    Of a model in train mode, the gradients are compared too. On the meta device there is nothing to compare.

    Args:
        model: the model.
        program: what was captured from it.
        seed: of the inputs.
        few: whether few rows are enough where the batch is free.

    Raises:
        VerifyError: the two compute different things, or the program fails where the model runs.
    """
    if on_meta(model):
        return [], []
    try:
        check = compare_model(model, program, seed=seed, few=few)
    except VerifyError:
        raise
    except Exception as error:
        return [], [
            Remark(
                "missed",
                "verify.model-not-run",
                type(model).__name__,
                "the captured program was not compared with the model, which does not run on random inputs",
                f"{type(error).__name__}: {first_line(error)}",
                "compare program.module with the model on your own inputs",
            )
        ]
    check.raise_if_undefined()
    if not check.ok:
        raise VerifyError(
            f"what was captured differs from the model in {check.worst_output}",
            where=type(model).__name__,
            why=f"{check}",
            do=_REPORT,
        )
    if not model.training:
        return [check], []
    gradients, remarks = compare_gradients(model, program, seed=seed)
    return [check, *gradients], remarks


def _running(model: nn.Module, noise: Mapping[str, torch.Tensor], program: Program) -> Run:
    """Runs a copy of the model, some of its tensors replaced, in the mode of the program."""

    def run(args: tuple[Any, ...], kwargs: Any) -> Sequence[Any]:
        with undisturbed(), stand_in(model, own_data=True) as twin, callers_device():
            if not _mode_is_fixed(model, program):
                twin.eval()
            return _outputs(twin, noise, args, kwargs)

    return run


def _running_program(program: Program, state: Mapping[str, torch.Tensor], model: nn.Module) -> Run:
    """Runs a copy of the program with these tensors, in eval mode unless its mode is fixed."""
    module: TracedModule = program.module
    if not _mode_is_fixed(model, program):
        graph = copy.deepcopy(program.graph)
        module = build_module(module, graph, training=program.training).eval()

    def run(args: tuple[Any, ...], kwargs: Any) -> Sequence[Any]:
        try:
            return _outputs(module, state, args, kwargs)
        except Exception as error:
            raise VerifyError(
                "the program does not run on random inputs on which the model does",
                where=program.name,
                why=f"{type(error).__name__}: {first_line(error)}",
                do=_REPORT,
            ) from error

    return run


def _mode_is_fixed(model: nn.Module, program: Program) -> bool:
    """Whether one of the two keeps its mode; torch.export replaces `train` of modules that do, which then raises."""
    replaced = any("train" in vars(m) for m in model.modules())
    return replaced or any(r.code == "capture.mode-fixed" for r in program.remarks)


class _Calling(nn.Module):
    """Calls a module; `functional_call` refuses an nn.DataParallel itself, and not what holds one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@torch.no_grad()
def _outputs(
    module: nn.Module, state: Mapping[str, torch.Tensor], args: tuple[Any, ...], kwargs: Any
) -> Sequence[Any]:
    """The flat outputs of a module with copies of these tensors in place of its own."""
    copies = {id(t): t.detach().clone() for t in state.values()}
    tensors = {f"module.{name}": copies[id(t)] for name, t in state.items()}
    return pytree.tree_leaves(functional_call(_Calling(module), tensors, args, dict(kwargs)))


def _compare_sizes(model: nn.Module, out: Any, program: Program) -> None:
    """Refuses outputs of other sizes than those of the program; only their free sizes may differ."""
    returned = program.graph.output_node().args[0]
    wanted = [n.meta.get("val") for n in pytree.tree_leaves(returned) if isinstance(n, fx.Node)]
    found = [x for x in pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]
    for i, (a, b) in enumerate(zip(found, wanted, strict=False)):
        if isinstance(b, torch.Tensor) and not _fits(a, b):
            raise PlanError(
                f"output {i} of {type(model).__name__} has the shape {tuple(a.shape)}",
                why=f"it must be {tuple(b.shape)}: some class spells a size itself",
                do=_TEACH,
            )


def _fits(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    if found.dim() != wanted.dim():
        return False
    pairs = zip(found.shape, wanted.shape, strict=True)
    return all(not isinstance(b, int) or a == b for a, b in pairs)
