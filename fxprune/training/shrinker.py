"""Shrinks a network during training: the network, its optimizer and averaged weights in one transaction."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from fxprune.analysis.cache import solved
from fxprune.capture import capture
from fxprune.distributed import is_sharded
from fxprune.graph.leaf import is_inside_leaf
from fxprune.graph.program import Program, TracedModule
from fxprune.instruments import read_environment
from fxprune.pipeline import Result, run_pipeline
from fxprune.pipeline.run import Steps
from fxprune.plan import Plan, check_plan
from fxprune.process.random_state import random_state_kept
from fxprune.process.state import plain_modes
from fxprune.shrink import apply_plan
from fxprune.shrink.tensors import slice_axes
from fxprune.training.checkpoint import read_state, write_state
from fxprune.training.correspondence import Correspondence, correspond, correspond_by_name
from fxprune.training.ema import Ema, move_ema, restart_ema
from fxprune.training.errors import TrainingError
from fxprune.training.optimizer_state import OptimizerMove, check_optimizer, move_optimizer
from fxprune.training.point import Point, return_optimizer
from fxprune.training.sharding import Sharding, copy_parts, copy_whole, gather, hooks_of_fsdp
from fxprune.verify import Verify, compare_gradients, compare_programs
from fxprune.verify.check import on_meta

Tensor = torch.Tensor
Rewritten = Literal["refuse", "reset"]


@dataclass(frozen=True, eq=False)
class Change:
    """One shrinking that was carried out; prints as text.

    Attributes:
        before: the program before; its parameters no longer belong to the optimizer.
        after: the smaller program.
        plans: the plans that removed units, in order.
        dropped: the names of parameters and buffers that were removed.
        left: the names of those among them that the optimizer held.
        joined: the names of new parameters that the optimizer now holds.
        restarted: the names of parameters whose values a pass recomputed; their state was reset.
        result: the result of the pipeline, if one ran.
    """

    before: Program = field(repr=False)
    after: Program = field(repr=False)
    plans: tuple[Plan, ...] = field(repr=False)
    dropped: tuple[str, ...]
    left: tuple[str, ...]
    joined: tuple[str, ...]
    restarted: tuple[str, ...]
    result: Result | None = field(default=None, repr=False)

    @property
    def changed(self) -> bool:
        """Whether the program has changed."""
        return self.after is not self.before

    def __str__(self) -> str:
        sizes = [sum(p.numel() for p in x.module.parameters()) for x in (self.before, self.after)]
        layers = _weighted(self.before) - _weighted(self.after)
        counts = {
            "units removed": sum(len(plan.removed) for plan in self.plans),
            "layers deleted": len(layers),
            "parameters left the optimizer": len(self.left),
            "parameters joined it": len(self.joined),
        }
        said = [f"{count} {what}" for what, count in counts.items() if count]
        nodes = [len(x.graph.nodes) for x in (self.before, self.after)]
        said = said or [f"nodes {nodes[0]} -> {nodes[1]}"]
        return "; ".join([f"parameters {sizes[0]:,} -> {sizes[1]:,}", *said])


def _weighted(program: Program) -> set[str]:
    """Returns the paths of the modules that have parameters of their own, except gates."""
    named = program.module.named_parameters()
    return {n.rpartition(".")[0] for n, _ in named if not is_inside_leaf(program.module, n)}


class Shrinker:
    """Applies plans and passes to a network in training, and to its optimizer and averaged weights.

    Parameters, gradients, hooks, `requires_grad`, every state of the optimizer, its groups and the averaged
    weights are sliced in the same way; parameters of deleted layers leave the optimizer. Everything is
    computed first and then put in place, so that an error leaves everything unchanged. The optimizer remains
    the same object. The network is `shrinker.module`, which is a new module after each shrinking. A step of
    the optimizer with gradients of an old network (from a loop or a DDP wrapper that still holds it) is
    refused.

    Args:
        program_or_model: a captured network, or a model; the model's own parameters are trained, under its names.
        optimizer: an optimizer over the parameters of the network; other parameters in it do not change.
        args: the example positional inputs of a model.
        kwargs: the example keyword inputs of a model.
        ema: averaged weights: an AveragedModel, or tensors by name.
        scaler: a GradScaler; it holds no state per parameter and is only saved with the rest.
        scheduler: a learning-rate scheduler, which is saved with the rest; groups are kept, even empty ones.
        dynamic_batch: see `capture`.
        dynamic_shapes: see `capture`.

    Raises:
        TrainingError: the optimizer does not belong to this network or cannot be shrunk, or the network is
            wrapped or sharded.
        CaptureError: the model could not be captured.
        VerifyError: the gradients of what was captured are not those of the model.
    """

    def __init__(
        self,
        program_or_model: Program | nn.Module,
        optimizer: Optimizer,
        *,
        args: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        ema: Ema | None = None,
        scaler: Any = None,
        scheduler: Any = None,
        dynamic_batch: bool = True,
        dynamic_shapes: Any = None,
    ) -> None:
        if not isinstance(program_or_model, Program):
            _check_plain(program_or_model)
            given = None if kwargs is None else dict(kwargs)
            sizes = {"dynamic_batch": dynamic_batch, "dynamic_shapes": dynamic_shapes}
            program_or_model = _captured(program_or_model, args, given, sizes)
        self._program = program_or_model
        self.optimizer, self.ema, self.scaler, self.scheduler = optimizer, ema, scaler, scheduler
        self._retired: list[weakref.ref[Tensor]] = []
        self._guard: Any = None
        self._sharding: Sharding | None = None
        _check_plain(self._program.module)
        check_optimizer(optimizer)
        held = {p for group in optimizer.param_groups for p in group["params"]}
        if not held.intersection(self._program.module.parameters()):
            raise TrainingError(
                "the optimizer holds no parameter of the network",
                where=self._program.name,
                why="it was created for another copy of the model, or a copy of the model was captured",
                do="create it with program.module.parameters(), or pass the model itself",
            )

    @property
    def program(self) -> Program:
        """The current program."""
        return self._program

    @property
    def module(self) -> TracedModule:
        """The module to train at present: `program.module`."""
        return self._program.module

    @property
    def is_sharded(self) -> bool:
        """Whether `shard` was called: each process holds a part of the network."""
        return self._sharding is not None

    def shard(self, mesh: Any = None, **options: Any) -> None:
        """Shards the network and its optimizer over processes with torch's `fully_shard` (FSDP2).

        `shrinker.module` is under FSDP from then on, and again after each shrinking: no loop has to wrap anything.
        The weights that the first process has count. All processes then have to call `apply`, `run`, `point`,
        `go_back` and `whole_program` alike, with one and the same plan: that is checked. Create methods before:
        they insert gates and observers, which remain whole on each process.

        Args:
            mesh: a device mesh of one dimension, or of two (copies, shards); None: all processes.
            options: further options of `fully_shard`, such as `mp_policy`.

        Raises:
            TrainingError: the network is sharded already, there are averaged weights, a state of the optimizer
                cannot be sharded, or an option is taken.
        """
        self._sharding = _sharding(self._sharding, mesh, options, self.ema)
        try:
            self._shard(self._sharding)
        except BaseException:
            self._sharding = None
            raise

    def _shard(self, sharding: Sharding) -> None:
        before = self._program
        sharding.take_first(before)
        after = sharding.distribute(before, {})
        tensors = correspond_by_name(before, after, {}, frozenset())
        move = move_optimizer(self.optimizer, tensors)
        move = replace(move, state=sharding.shard_state(move.state))
        for old in tensors.before.values():
            old.grad = None
        self._commit(after, tensors, move, _nothing)
        # What a forward pass without a backward pass has gathered would outlive the step, and be trained on.
        self.optimizer.register_step_pre_hook(lambda *_: self._gather_no_more())

    def whole_program(self) -> Program:
        """Returns a copy of the program with the whole of each tensor, to save or to measure it.

        If the network is sharded, all processes have to call this, and each gets the whole.
        """
        self._gather_no_more()
        return copy_whole(self._program) if self.is_sharded else copy.deepcopy(self._program)

    @plain_modes()
    def apply(self, plan: Plan, *, verify: bool = False) -> Change:
        """Removes the units of a plan.

        Args:
            plan: a plan for `shrinker.program`, or one read from a file.
            verify: first compare the smaller program with the silenced original, in float64.

        Returns:
            What changed.

        Raises:
            PlanError, VerifyError, TrainingError: the plan was refused; nothing has changed.
        """
        self._gather_no_more()
        before = self._program
        checked = check_plan(before, plan)
        if self._sharding is not None:
            self._sharding.check_agreed([checked])
        if verify:
            full, _ = gather(before) if self.is_sharded else (before, {})
            silenced = apply_plan(full, solved(full), checked)
            compare_programs(full, solved(full), checked, silenced).raise_if_bad()
        small = apply_plan(before, solved(before), checked)
        return self._replace(small, (checked,), "refuse", None)

    @plain_modes()
    def run(
        self,
        pipeline: Steps,
        *,
        verify: Verify = "local",
        rewritten: Rewritten = "refuse",
        seed: int = 0,
    ) -> Change:
        """Runs passes, for example `shrinker.run("delete-gated")`; the random state of training does not change.

        Args:
            pipeline: pipeline text, passes, or functions on a GraphModule.
            verify: how to check each pass against what it declares to preserve; see `fp.run`.
            rewritten: what to do if a pass recomputes a trained parameter, as folding does: `refuse` it, or
                `reset` the parameter's optimizer state, which belonged to the old values.
            seed: the seed of random choices and of the inputs of checks.

        Returns:
            What changed.

        Raises:
            PipelineError, OptionError, TrainingError: the run failed; nothing has changed.
        """
        self._gather_no_more()
        before = self._program
        known: dict[Tensor, Tensor] = {}
        if self.is_sharded:
            before, known = gather(before)
        asked = read_environment()
        with random_state_kept():
            result = run_pipeline(
                before,
                pipeline,
                instruments=asked.instruments,
                verify=verify if asked.verify is None else asked.verify,
                disable=asked.disable,
                limit=asked.limit,
                seed=seed,
            )
        if self._sharding is None or result.program is before:
            after = self._program if result.program is before else result.program
            return self._replace(after, result.plans, rewritten, result)
        self._sharding.check_agreed(result.plans, result.program)
        tensors = correspond(before, result.program, result.plans)
        after = self._sharding.distribute(result.program, known)
        tensors = correspond_by_name(self._program, after, tensors.kept, tensors.rewritten)
        return self._put(after, tensors, result.plans, rewritten, result)

    def point(self) -> Point:
        """Returns the network as it is now, copied, for `go_back`."""
        self._gather_no_more()
        if not self.is_sharded:
            return Point.of(self._program, self.optimizer)
        return Point.of(self._program, self.optimizer, copy_parts)

    def go_back(self, point: Point) -> Change:
        """Goes on from the network of an earlier time; the point becomes the network in training.

        Parameters that have left the optimizer since return to their groups. The states of all parameters of
        the network are reset, and averages start anew from its weights: both belonged to other values. The
        options of the groups (learning rates), the scaler and the scheduler stay as they are now.

        Args:
            point: what `point()` returned earlier. It is used up: take another one to go back again.

        Returns:
            What changed.

        Raises:
            TrainingError: the optimizer has another number of groups, or a parameter was frozen or unfrozen
                since; nothing has changed.
        """
        self._gather_no_more()
        before, after = self._program, point.program
        _check_alike(before, after)
        _move_to_device_of(before, after)
        tensors = correspond(before, after, ())
        move = return_optimizer(self.optimizer, tensors, point.groups)
        averages = _nothing if self.ema is None else restart_ema(self.ema, after, tensors)
        self._commit(after, tensors, move, averages)
        named = {n for names in point.groups for n in names}
        restarted = tuple(n for n in tensors.before if n in named)
        return _change(before, after, (), tensors, move, restarted, None)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of training besides the program: optimizer, averages, scaler, scheduler, random state.

        Save the program with `fp.save(shrinker.program, directory)`; see docs/training.md.
        """
        self._check_whole()
        return write_state(self._program, self.optimizer, self.ema, self.scaler, self.scheduler)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned; parameters are matched by name, in the order of the state.

        Raises:
            TrainingError: the state belongs to another network or to other parts; nothing has changed.
        """
        self._check_whole()
        read_state(state, self._program, self.optimizer, self.ema, self.scaler, self.scheduler)

    def _check_whole(self) -> None:
        if self.is_sharded:
            raise TrainingError(
                "each process holds only a part of the state of a sharded network",
                why="a file of one process would be read as if it held everything",
                do="write it with torch.distributed.checkpoint: docs/scale.md, Training on several machines",
            )

    def _replace(
        self, after: Program, plans: tuple[Plan, ...], rewritten: Rewritten, result: Result | None
    ) -> Change:
        """Computes everything that depends on a new program, then puts it in place."""
        before = self._program
        if after is before:
            return Change(before, after, plans, (), (), (), (), result)
        if not self.is_sharded:
            _check_plain(before.module)
        return self._put(after, correspond(before, after, plans), plans, rewritten, result)

    def _put(
        self,
        after: Program,
        tensors: Correspondence,
        plans: tuple[Plan, ...],
        rewritten: Rewritten,
        result: Result | None,
    ) -> Change:
        before = self._program
        restarted = _restarted(self.optimizer, tensors, rewritten)
        move = move_optimizer(self.optimizer, tensors)
        averages = _nothing if self.ema is None else move_ema(self.ema, after, tensors)
        self._commit(after, tensors, move, averages)
        return _change(before, after, plans, tensors, move, restarted, result)

    def _commit(
        self,
        after: Program,
        tensors: Correspondence,
        move: OptimizerMove,
        averages: Callable[[], None],
    ) -> None:
        """Puts a new program in place, with everything that was computed for it."""
        retired = _hand_over(tensors)
        if self._sharding is not None:
            self._sharding.wrap(after.module)
            self._sharding.average_gates(after.module)
        # From here on nothing can fail.
        _share_hooks(self._program.module, after.module)
        move.commit()
        averages()
        for old in retired:
            old.grad = None
        self._retire(retired)
        self._program = after

    def _gather_no_more(self) -> None:
        """Gives back what FSDP has gathered for a forward pass without a backward pass."""
        if self.is_sharded:
            module: Any = self._program.module
            module.reshard()

    def _retire(self, parameters: list[Tensor]) -> None:
        alive = [ref for ref in self._retired if ref() is not None]
        self._retired[:] = [*alive, *map(weakref.ref, parameters)]
        if self._guard is None:
            self._guard = self.optimizer.register_step_pre_hook(_Guard(self._retired))


class _Guard:
    """Refuses a step while a parameter that was replaced has a gradient."""

    def __init__(self, retired: list[weakref.ref[Tensor]]) -> None:
        self._retired = retired

    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = (ref() for ref in self._retired)
        if any(p is not None and p.grad is not None for p in parameters):
            raise TrainingError(
                "gradients were computed for a network from before the last shrinking",
                why="a loop, a DDP wrapper or a compiled function still holds that network",
                do="after each shrinking, use shrinker.module, and for DDP fp.training.rewrap(shrinker, ddp)",
            )


def _captured(
    model: nn.Module, args: Any, kwargs: dict[str, Any] | None, sizes: Mapping[str, Any]
) -> Program:
    """Captures a model with the backward of its autograd Functions, and holds the gradients to the model's."""
    program = capture(model, args, kwargs, backward=True, **sizes)
    if on_meta(model):
        return program
    _, remarks = compare_gradients(model, program)
    return replace(program, remarks=(*program.remarks, *remarks))


def _sharding(
    known: Sharding | None, mesh: Any, options: Mapping[str, Any], ema: Ema | None
) -> Sharding:
    """Checks what `Shrinker.shard` is asked for."""
    from torch.distributed.device_mesh import init_device_mesh

    if known is not None:
        raise TrainingError("the network is sharded already")
    if ema is not None:
        raise TrainingError(
            "averaged weights are not sharded",
            do="create the Shrinker without ema, and average the parts yourself",
        )
    if taken := options.keys() & {"ignored_params", "shard_placement_fn", "dp_mesh_dims"}:
        raise TrainingError(
            f"{', '.join(sorted(taken))} cannot be chosen",
            why="gates stay whole on each process, and every weight is sharded by its first axis",
            do="leave it out",
        )
    if not dist.is_initialized():
        raise TrainingError(
            "there is only one process",
            why="torch.distributed is not initialised",
            do="start the script with torchrun and call torch.distributed.init_process_group()",
        )
    if mesh is None:
        device = torch.accelerator.current_accelerator() if dist.get_backend() != "gloo" else None
        mesh = init_device_mesh(device.type if device else "cpu", (dist.get_world_size(),))
    if mesh.ndim > 2:
        raise TrainingError(
            f"the mesh has {mesh.ndim} dimensions",
            do="give one of one dimension, or of two: copies, and shards within a copy",
        )
    return Sharding(mesh, options)


def _check_alike(before: Program, after: Program) -> None:
    """Refuses a point of a time at which the network was sharded otherwise."""
    parts = [any(map(is_sharded, x.module.parameters())) for x in (before, after)]
    if parts[0] != parts[1]:
        raise TrainingError(
            "the point is of a time before the network was sharded",
            do="take a new one with shrinker.point() after shrinker.shard()",
        )


def _nothing() -> None:
    pass


def _move_to_device_of(before: Program, after: Program) -> None:
    """Moves a program that was read from a file to the device on which the network trains."""
    device = next(before.module.parameters()).device
    if next(after.module.parameters()).device != device:
        after.module.to(device)


def _change(
    before: Program,
    after: Program,
    plans: tuple[Plan, ...],
    tensors: Correspondence,
    move: OptimizerMove,
    restarted: tuple[str, ...],
    result: Result | None,
) -> Change:
    return Change(before, after, plans, tensors.dropped, move.left, move.joined, restarted, result)


def _check_plain(module: nn.Module) -> None:
    """Refuses networks that cannot be shrunk: wrapped ones, or ones whose parameters are sharded."""
    if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise TrainingError(
            f"the network is wrapped in {type(module).__name__}",
            why="a wrapper keeps the parameters with which it was created",
            do="pass the module inside it (ddp.module), and wrap shrinker.module; see fp.training.rewrap",
        )
    for name, parameter in module.named_parameters():
        if is_sharded(parameter):
            raise TrainingError(
                "the network is sharded already (FSDP2, fully_shard, or parallelize_module)",
                where=name,
                why="a Shrinker has to shard it itself, to shard what is left in the same way",
                do="give it the whole network and call shrinker.shard(mesh); for a module of your own class, "
                "fp.training.shrink_sharded",
            )


def _restarted(
    optimizer: Optimizer, tensors: Correspondence, rewritten: Rewritten
) -> tuple[str, ...]:
    """Returns the names of the optimizer's parameters whose values were recomputed.

    Raises:
        TrainingError: there are some, and they are to be refused.
    """
    held = {p for group in optimizer.param_groups for p in group["params"]}
    found = tuple(n for n in tensors.before if n in tensors.rewritten and tensors.before[n] in held)
    if found and rewritten == "refuse":
        raise TrainingError(
            f"a pass recomputed {len(found)} trained parameters",
            where=", ".join(found[:4]) + (", ..." if len(found) > 4 else ""),
            why="the optimizer's momentum and moments belong to the old values",
            do='run that pass after training, or reset the state of these parameters: rewritten="reset"',
        )
    return found


def _hand_over(tensors: Correspondence) -> list[Tensor]:
    """Gives new parameters the gradients, hooks and attributes of the old ones, which do not change.

    Returns:
        The old parameters that were replaced or removed.
    """
    retired: list[Tensor] = []
    for old, successor in tensors.successors().items():
        new = successor.tensor
        if not isinstance(old, nn.Parameter) or new is old:
            continue
        retired.append(old)
        if new is None:
            continue
        if new.requires_grad != old.requires_grad:
            raise TrainingError("a rewrite changed requires_grad", where=successor.name)
        if old.grad is not None and successor.name not in tensors.rewritten:
            new.grad = _shrunk_gradient(old.grad, successor.cut, successor.name)
        vars(new).update(vars(old))
        for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            if getattr(old, hooks):  # the same dict: handles that the user holds still remove them
                setattr(new, hooks, getattr(old, hooks))
    return retired


def _shrunk_gradient(gradient: Tensor, cut: Mapping[int, Any], name: str) -> Tensor:
    if not cut:
        return gradient
    if gradient.layout != torch.strided:
        raise TrainingError(
            f"a gradient of layout {gradient.layout}",
            where=name,
            do="shrink after optimizer.zero_grad()",
        )
    return slice_axes(gradient, cut)


def _share_hooks(before: nn.Module, after: nn.Module) -> None:
    """Gives modules with the same path the same hooks, except those of FSDP, of which each has its own."""
    new = dict(after.named_modules())
    for path, module in before.named_modules():
        twin = new.get(path)
        if twin is None or twin is module:
            continue
        stale = hooks_of_fsdp(module)
        for name, value in vars(module).items():
            if "_hooks" in name and isinstance(value, dict) and value:
                kept = {key: hook for key, hook in value.items() if key not in stale}
                own = getattr(twin, name)
                value.clear()
                value.update({**own, **kept})
                setattr(twin, name, value)
