"""Networks in training that FSDP2 shards: their programs gathered, and sharded again as they were."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fxprune.distributed import is_sharded, whole
from fxprune.graph.leaf import is_inside_leaf
from fxprune.graph.program import Program, build_module, share_objects, share_tensors
from fxprune.plan import Plan
from fxprune.training.agree import check_equal
from fxprune.training.errors import TrainingError

Tensor = torch.Tensor
_FSDP = "torch.distributed.fsdp"


@dataclass(frozen=True, eq=False)
class Sharding:
    """How the network of a `Shrinker` is sharded: one mesh, and the options of torch's `fully_shard`.

    The network is sharded as one, since only its root is called: the modules inside a captured program hold its
    tensors and have no forward of their own. Parameters of gates remain whole on every process: they are few,
    `fully_shard` takes no scalars, and the methods read and set them. Their gradients are averaged.

    Attributes:
        mesh: a device mesh of one dimension, or of two: copies, and shards within a copy.
        options: further options of `fully_shard`.
    """

    mesh: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> list[Any]:
        """The process groups along each dimension of the mesh."""
        return [self.mesh.get_group(i) for i in range(self.mesh.ndim)]

    def check_agreed(self, plans: Iterable[Plan], program: Program | None = None) -> None:
        """Checks that all processes of the mesh have the same plans, and the same program if one is given.

        Raises:
            TrainingError: they differ.
        """
        what = "\n".join(plan.digest for plan in plans)
        if program is not None:
            sizes = [f"{n} {list(t.shape)}" for n, t in program.tensors().items()]
            what = "\n".join([what, program.module.code, *sizes])
        digest = hashlib.sha256(what.encode()).hexdigest()
        for group in self.groups:
            check_equal(digest, "plans" if program is None else "programs", group)

    @torch.no_grad()
    def take_first(self, program: Program) -> None:
        """Gives every process the values that the first process of the mesh has."""
        for tensor in dict.fromkeys(program.tensors().values()):
            if not tensor.is_meta:
                for group in self.groups:
                    dist.broadcast(tensor, group=group, group_src=0)

    def distribute(self, program: Program, known: Mapping[Tensor, Tensor]) -> Program:
        """Returns a program of which this process holds a part, not yet under FSDP.

        Args:
            program: a program with the whole of its tensors, equal on all processes.
            known: sharded parameters that exist already, by the whole ones.
        """
        return _rebuilt(program, lambda p: known[p] if p in known else self._part(p))

    def _part(self, parameter: nn.Parameter) -> nn.Parameter:
        from torch.distributed.tensor import Replicate, Shard, distribute_tensor

        layout = [*[Replicate()] * (self.mesh.ndim - 1), Shard(0)]
        full = parameter.detach().contiguous()
        part = distribute_tensor(full, self.mesh, layout, src_data_rank=None)
        return nn.Parameter(part.detach().clone(), parameter.requires_grad)

    def shard_state(self, state: Mapping[Tensor, Any]) -> dict[Tensor, Any]:
        """Returns the states of an optimizer with those sharded that are shaped like their sharded parameter."""
        found: dict[Tensor, Any] = {}
        for p, entries in state.items():
            found[p] = entries
            if is_sharded(p):
                found[p] = {key: self._state(x, p) for key, x in entries.items()}
        return found

    def _state(self, value: Any, parameter: Tensor) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0 or is_sharded(value):
            return value
        if value.shape != parameter.shape:
            raise TrainingError(
                f"a state of the optimizer has shape {list(value.shape)}, its parameter {list(parameter.shape)}",
                why="only states that are shaped like their parameter are sharded with it",
                do="shard before the first step of the optimizer, or use another one",
            )
        return self._part(nn.Parameter(value, False)).detach()

    def wrap(self, module: nn.Module) -> None:
        """Puts a module with sharded parameters under FSDP, in place; the parameters remain the same objects."""
        from torch.distributed.fsdp import fully_shard

        held: dict[str, Tensor] = {}
        empty: dict[Tensor, nn.Parameter] = {}
        for path, owner in module.named_modules(remove_duplicate=False):
            for name, p in owner._parameters.items():
                if p is not None and is_sharded(p):
                    held[f"{path}.{name}" if path else name] = p
                    if p not in empty:
                        like = torch.empty(p.shape, dtype=p.dtype, device="meta")
                        empty[p] = nn.Parameter(like, p.requires_grad)
                    owner._parameters[name] = empty[p]
        others = set(module.parameters()) - set(empty.values())
        fully_shard(module, mesh=self.mesh, ignored_params=others, **self.options)
        module.load_state_dict(held, strict=False, assign=True)

    def average_gates(self, module: nn.Module) -> None:
        """Lets the gradients of the parameters that are not sharded be averaged over the processes, as FSDP's are."""
        for p in module.parameters():
            hooks = getattr(p, "_post_accumulate_grad_hooks", None) or {}
            if not is_sharded(p) and not any(map(_averages, hooks.values())):
                trained = p.requires_grad
                p.requires_grad_(True)  # a hook is refused otherwise; a method may train it later
                p.register_post_accumulate_grad_hook(self._average)  # type: ignore[no-untyped-call]
                p.requires_grad_(trained)

    def _average(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        for group in self.groups:
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= dist.get_world_size(group)


def gather(program: Program) -> tuple[Program, dict[Tensor, Tensor]]:
    """Returns a program with the whole of every tensor, and its sharded parameters by the whole ones.

    All processes have to call it. What is not sharded is shared with the given program.
    """
    made: dict[Tensor, Tensor] = {}

    def whole_of(p: nn.Parameter) -> Tensor:
        if not is_sharded(p):
            return p
        full = nn.Parameter(whole(p), p.requires_grad)
        made[full] = p
        return full

    return _rebuilt(program, whole_of), made


def copy_parts(program: Program) -> Program:
    """Returns a copy of a sharded program, of which this process holds the same parts; it is not under FSDP."""
    return _rebuilt(
        program,
        lambda p: nn.Parameter(p.detach().clone(), p.requires_grad) if is_sharded(p) else p,
        own=True,
    )


def copy_whole(program: Program) -> Program:
    """Returns a copy of a program with the whole of every tensor; all processes have to call it."""
    return _rebuilt(
        program,
        lambda p: nn.Parameter(whole(p), p.requires_grad) if is_sharded(p) else p,
        own=True,
    )


def _rebuilt(
    program: Program, of: Callable[[nn.Parameter], Tensor], *, own: bool = False
) -> Program:
    """Returns a program with other parameters, outside of leaf modules; shared ones stay shared.

    Args:
        program: the program.
        of: returns the parameter that takes the place of one.
        own: whether what stays is copied.
    """
    tree = nn.Module()
    share_tensors(program.module, tree)
    share_objects(program.module, tree, program.graph)
    made: dict[Tensor, Tensor] = {}
    for owner, name, full in _places(tree):
        p = owner._parameters[name]
        if p is not None and not is_inside_leaf(program.module, full):
            if p not in made:
                made[p] = of(p)
            owner._parameters[name] = made[p]  # type: ignore[assignment]
    if own:
        tree = copy.deepcopy(tree, {id(new): new for old, new in made.items() if new is not old})
    graph = copy.deepcopy(program.graph)
    return program.with_module(build_module(tree, graph, training=program.training))


def _places(tree: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Returns where parameters are: module, name there, full name."""
    for path, owner in tree.named_modules(remove_duplicate=False):
        for name in list(owner._parameters):
            yield owner, name, f"{path}.{name}" if path else name


def _averages(hook: Any) -> bool:
    return getattr(hook, "__func__", None) is Sharding._average


def hooks_of_fsdp(module: nn.Module) -> set[int]:
    """Returns the keys of the hooks that FSDP has registered at a module."""
    return {
        key
        for name, hooks in vars(module).items()
        if "_hooks" in name and isinstance(hooks, dict)
        for key, hook in hooks.items()
        if str(getattr(hook, "__module__", "")).startswith(_FSDP)
    }
