"""What methods are compared with: the same budget, spent by chance, by magnitude, or from the start."""

from __future__ import annotations

import copy
from collections.abc import Callable
from glob import escape
from math import inf, log

import torch
from torch import nn

import fxprune as fp
from experiments.outcome import blocks_of
from experiments.placed import placed
from experiments.store import Peer
from experiments.task import Control
from fxprune.errors import BudgetError
from fxprune.graph.program import Program
from fxprune.report import Outcome
from fxprune.report.latency import compare_latency
from fxprune.structure.blocks import find_blocks
from fxprune.training import Shrinker
from fxprune_passes.insert.insert_gates import InsertGates
from fxprune_passes.insert.set_gates import SetGates
from fxprune_passes.methods.method import for_use
from fxprune_passes.rewrite.delete_gated import DeleteGated

# Halvings of the search for a network of equal latency.
HALVINGS = 7
# What two measurements of the same latency differ by.
NOISE = 0.02


def prepare(control: Control, peer: Peer, start: Program, model: nn.Module, seed: int) -> Program:
    """The network that a control begins to train.

    Args:
        control: of what kind.
        peer: the run that it is like.
        start: the dense network.
        model: the same as a model of torch, with its own new weights; it is used up.
        seed: of what is chosen at random.
    """
    if control.kind == "scratch":
        structure = placed(fp.load(peer.folder / "structure"), start.args[0].device)
        return renewed(structure, start, model)
    if control.kind == "uniform":
        return renewed(smaller(control, peer, start, seed).program, start, model)
    return start


def act(control: Control, peer: Peer, shrinker: Shrinker, epoch: int, last: int, seed: int) -> None:
    """What a control does behind an epoch, if anything.

    Args:
        control: of what kind.
        peer: the run that it is like.
        shrinker: of the network that trains.
        epoch: number of epochs that are over.
        last: the epoch behind which `magnitude after` prunes.
        seed: of what is chosen at random.
    """
    if control.kind == "blocks" and control.equal == "latency":
        if epoch == peer.row["last_removal"]:
            final = placed(fp.load(peer.folder / "final"), shrinker.program.args[0].device)
            while (left := blocks_of(shrinker.program)) and is_slower(shrinker.program, final):
                delete_blocks(shrinker, left - 1, seed)
    elif control.kind == "blocks" and epoch <= len(peer.row["blocks"]):
        delete_blocks(shrinker, int(peer.row["blocks"][epoch - 1]), seed)
    when = {"random": peer.row["last_removal"], "magnitude": peer.row["last_removal"]}
    if epoch == {**when, "magnitude after": last}.get(control.kind):
        shrinker.apply(smaller(control, peer, shrinker.program, seed).plan)


def delete_blocks(shrinker: Shrinker, left: int, seed: int) -> None:
    """Deletes residual blocks at random until so many are left."""
    paths = [block.path for block in find_blocks(shrinker.program)]
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [paths[i] for i in order[: max(0, len(paths) - left)]]
    if chosen:
        gates = [InsertGates("block", where=escape(path)) for path in chosen]
        shrinker.run([*gates, SetGates(), DeleteGated()])


def is_slower(program: Program, wanted: Program) -> bool:
    """Whether a network that trains is slower than another in use, beyond what two measurements differ by."""
    mine = for_use(copy.deepcopy(program), verify=False)
    return compare_latency(wanted, mine, rounds=31).ratio > 1 + NOISE


def smaller(control: Control, peer: Peer, program: Program, seed: int) -> Outcome:
    """A network without some units, that has what the control says in common with its peer."""

    def prune(keep: float, *, verify: bool = False) -> Outcome:
        by_size = control.kind in ("magnitude", "magnitude after")
        return fp.prune(
            program,
            keep=keep,
            metric="params" if control.equal == "params" else "macs",
            importance="magnitude" if by_size else "random",
            scope="global" if by_size else "group",
            seed=seed,
            verify=verify,
        )

    if control.equal == "latency":
        final = placed(fp.load(peer.folder / "final"), program.args[0].device)
        return prune(keep_of_latency(prune, final), verify=True)
    key = {"params": "parameters", "macs": "macs"}[control.equal]
    return prune(peer.row[key] / peer.row["dense"][key], verify=True)


def keep_of_latency(prune: Callable[[float], Outcome], wanted: Program) -> float:
    """The share of MACs at which a pruned network is as fast as another, as near as a search by halves comes.

    Both networks are timed for use and in turns; where none is fast enough, it is the smallest that was tried.
    """
    low, high, best = 0.0, 1.0, (inf, 1.0)
    for _ in range(HALVINGS):
        keep = (low + high) / 2
        try:
            small = for_use(copy.deepcopy(prune(keep).program), verify=False)
        except BudgetError:
            low = keep
            continue
        ratio = compare_latency(wanted, small, rounds=31).ratio
        best = min(best, (abs(log(ratio)), keep))
        low, high = (keep, high) if ratio < 1 else (low, keep)
    return best[1]


@torch.no_grad()
def renewed(program: Program, start: Program, model: nn.Module) -> Program:
    """A network with new weights: those that each module of the model draws for itself at the network's shapes.

    Tensors that no module draws, such as a table of positions, take the leading part of those of the dense network
    at its start.

    Args:
        program: a smaller network with the names of the model; its tensors are written over.
        start: the dense network with new weights.
        model: the same as a model of torch; it is used up.
    """
    tensors, fresh = program.tensors(), start.tensors()
    for name, tensor in tensors.items():
        if name in fresh:
            tensor.copy_(fresh[name][tuple(slice(n) for n in tensor.shape)])
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        own = {**module._parameters, **module._buffers}
        names = [n for n, t in own.items() if t is not None and prefix + n in tensors]
        if names and hasattr(module, "reset_parameters"):
            for n in names:
                own[n].data = tensors[prefix + n].detach().clone()
            module.reset_parameters()
            for n in names:
                tensors[prefix + n].copy_(own[n])
    return program
