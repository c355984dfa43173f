"""Shrinks a sharded module of the user's own class, tensor by tensor: under FSDP2, or tensor parallel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fxprune.distributed import is_sharded
from fxprune.graph.program import named_tensors
from fxprune.plan import Plan
from fxprune.shrink.tensors import slice_axes
from fxprune.training.correspondence import Correspondence
from fxprune.training.errors import TrainingError
from fxprune.training.optimizer_state import move_optimizer
from fxprune.training.sharding import Sharding
from fxprune.write_back import written

Tensor = torch.Tensor


@torch.no_grad()
def shrink_sharded(
    model: nn.Module,
    plan: Plan,
    skeleton: nn.Module,
    shard: Callable[[nn.Module], Any],
    *,
    optimizer: Optimizer | None = None,
) -> nn.Module:
    """Returns a smaller sharded module with what a plan keeps of a sharded one; all its processes call it alike.

    Each tensor in turn is gathered, cut and sharded again in the same way, so that a process holds the whole of one
    tensor at a time beside its parts of the old and the new module. The class and forward of the model stay as they
    are, so that `fully_shard` can gather each layer by itself, and `parallelize_module` can place its hooks.

    Args:
        model: the module, sharded by `shard`. It is not changed; drop it, or both are in memory.
        plan: a plan for a capture of the skeleton.
        skeleton: the same module on the meta device, not sharded; it is not changed.
        shard: shards a module in place, as the model was: by `fully_shard`, or by `parallelize_module`.
        optimizer: the optimizer of the model. It goes on with the parameters of the smaller module and the parts of
            its states that belong to them. Gradients are not taken over: call this after `optimizer.zero_grad()`.

    Raises:
        TrainingError: the processes have different plans, the model is not sharded or otherwise than `shard` does it,
            or a part cannot be equal on all processes where tensor parallel layers need that; nothing has changed.
        PlanError: the plan cannot be written into the model's class.
        ShardError: a tensor is laid out in a way that cannot be made again.
    """
    _check_asked(skeleton, plan)
    for module in _under_fsdp(model):
        module.reshard()  # a forward pass without a backward pass leaves the root gathered
    before = named_tensors(model)
    mesh, parallel = _mesh_of(model, before)
    Sharding(mesh).check_agreed([plan])
    small = _skeleton_of(skeleton, plan)
    shapes = {name: tensor.shape for name, tensor in named_tensors(small).items()}
    _check_names(before, shapes)
    if parallel:
        _check_even(before, shapes)
    shard(small)
    expected = named_tensors(small)
    after: dict[str, Tensor] = {}
    made: dict[Tensor, Tensor] = {}
    for name, old in before.items():
        _check_layout(name, old, expected[name])
        if old not in made:
            part = slice_axes(old.detach(), plan.kept.get(name, {}))
            is_parameter = isinstance(old, nn.Parameter)
            made[old] = nn.Parameter(part, old.requires_grad) if is_parameter else part
        after[name] = made[old]
    kept = {name: cut for name, cut in plan.kept.items() if name in before}
    tensors = Correspondence(before, after, kept, frozenset(), frozenset())
    move = None if optimizer is None else move_optimizer(optimizer, tensors)
    _fill(small, after)
    if move is not None:
        move.commit()
    return small.train(model.training)


def _mesh_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[Any, bool]:
    """Returns the mesh of a sharded model, and whether its layers are tensor parallel instead of under FSDP."""
    meshes = {x.device_mesh for x in _sharded(tensors)}
    if len(meshes) != 1 or (mesh := meshes.pop()).ndim > 1:
        raise TrainingError(
            "the model is not sharded over one mesh of one dimension",
            where=type(model).__name__,
            why="it has no sharded parameter, or FSDP and tensor parallel layers shard the same tensors: one axis "
            "cut by both would be laid out in strides, which torch cannot make again from the whole",
            do="shard by fully_shard or by parallelize_module, not by both, or shrink it whole with fp.write_back",
        )
    return mesh, not _under_fsdp(model)


def _under_fsdp(model: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _sharded(tensors: Mapping[str, Tensor]) -> list[Any]:
    return [tensor for tensor in tensors.values() if is_sharded(tensor)]


def _check_asked(skeleton: nn.Module, plan: object) -> None:
    if not isinstance(plan, Plan):
        raise TrainingError(
            f"a {type(plan).__name__} cannot be carried out on shards",
            why="only a plan says for each tensor which of its positions stay; passes need whole weights",
            do="delete layers before the network is sharded",
        )
    if not all(tensor.is_meta for tensor in named_tensors(skeleton).values()):
        raise TrainingError(
            "the skeleton has weights",
            why="it only says how the class is built; the weights are those of the sharded model",
            do='build it again within torch.device("meta")',
        )


def _skeleton_of(skeleton: nn.Module, plan: Plan) -> nn.Module:
    """Returns the smaller model on the meta device.

    Raises:
        TrainingError: weights of the smaller model would have other values.
    """
    done = written(skeleton, plan, verify=plan.program is not None)
    if done.folds or done.unscaled:
        names = [fold.name for fold in done.folds] or list(done.unscaled)
        raise TrainingError(
            "weights of the smaller model would have a factor in them",
            where=", ".join(names[:4]),
            why="the class has no number for it, so it cannot be cut tensor by tensor",
            do="keep the width of norms and of heads, or shrink the whole network with fp.write_back",
        )
    return done.model


def _check_names(before: Mapping[str, Tensor], after: Mapping[str, Any]) -> None:
    if other := sorted(before.keys() ^ after.keys()):
        raise TrainingError(
            "the model and the skeleton have different tensors",
            where=", ".join(other[:4]),
            why="they are of different classes or configs, or the model is wrapped, as by activation checkpointing",
            do="build the skeleton as the model was built; wrap within `shard`, so that names stay",
        )


def _check_even(before: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    for name, old in before.items():
        if not is_sharded(old):
            continue
        sharded: Any = old
        count = sharded.device_mesh.size()
        for placement in sharded.placements:
            axis = placement.dim if placement.is_shard() else None
            if axis is not None and shapes[name][axis] % count:
                raise TrainingError(
                    f"{shapes[name][axis]} of {old.shape[axis]} positions would be left, which {count} processes "
                    "do not divide",
                    where=f"{name}, axis {axis}",
                    why="tensor parallel layers pass on their parts, and torch takes these to be equally long",
                    do=f"leave a multiple: multiple_of={count} in fp.prune, or a plan of that size",
                )


def _check_layout(name: str, old: Any, new: Any) -> None:
    same = is_sharded(old) == is_sharded(new)
    if same and is_sharded(old):
        same = old.device_mesh == new.device_mesh and old.placements == new.placements
    if not same:
        raise TrainingError(
            "the smaller model is sharded in another way",
            where=name,
            do="pass the function that sharded the model as `shard`",
        )


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a sharded model on the meta device its tensors, which remain the same objects."""
    stored = model.state_dict(keep_vars=True).keys()
    model.load_state_dict({n: t for n, t in tensors.items() if n in stored}, assign=True)
    for name, tensor in tensors.items():
        if name not in stored:
            path, _, own = name.rpartition(".")
            setattr(model.get_submodule(path), own, tensor)
