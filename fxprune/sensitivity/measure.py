"""Measures how the loss answers to the removal of each group's units and of each residual block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from fxprune.algebra.label import IntArray
from fxprune.analysis.axes import Axes
from fxprune.analysis.cache import solved
from fxprune.analysis.group import find_groups
from fxprune.calibration import Calibration
from fxprune.capture import capture
from fxprune.errors import OptionError
from fxprune.graph.evaluate import Evaluator
from fxprune.graph.program import Program, module_paths
from fxprune.importance import Importance, score_remarks, score_units
from fxprune.importance.default import importance_of
from fxprune.plan.choose import NO_LIMITS, Candidates, Target, find_candidates, give_back
from fxprune.plan.globs import ignored_parameters
from fxprune.plan.parts import equal_parts
from fxprune.process.random_state import random_state_kept
from fxprune.process.state import plain_modes
from fxprune.remark import Remark
from fxprune.sensitivity.forked import Branchless, Change, first_of, losses, own_precision
from fxprune.sensitivity.result import Basis, BlockResponse, GroupResponse, Sensitivity
from fxprune.structure.blocks import Block, find_blocks
from fxprune.verify.check import require_numbers
from fxprune.verify.reference import Silenced

SHARES = (0.1, 0.25, 0.5, 0.75)


@plain_modes()
@random_state_kept()
def sensitivity(
    network: torch.nn.Module | Program,
    data: Calibration | Iterable[Any],
    *,
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    shares: Sequence[float] = SHARES,
    importance: str | Importance | None = None,
    blocks: bool = True,
    ignore: Sequence[str] = (),
    progress: bool = True,
    seed: int = 0,
) -> Sensitivity:
    """Measures by how much the loss rises as each group loses units, and as each residual block goes.

    Nothing is rebuilt: units are silenced, which is what the pruned network computes, and the branch of a block is
    set to 0. Each number takes one forward of each batch from the first node on that the removal touches; what comes
    before is run once, in the order of the graph, and only values that are still to be read are held: the memory is
    that of two forwards. Dropout is off; batch norms are in the mode of the network.

    Args:
        network: a program or a model; it stays as it is.
        data: batches with a loss; the more there are, the less of what is measured is chance.
        args: example inputs of a model. None, without `kwargs` too: those of the first batch.
        kwargs: example keyword inputs of a model.
        shares: of the units of each group, above 0 and below 1, ascending.
        importance: the criterion by which units go, the lowest score first; they are scored once. None: the best one
            for the data there is, as in `prune`.
        blocks: whether residual blocks are measured too.
        ignore: globs of module paths whose own outputs stay as they are.
        progress: whether to show a bar on stderr, batch by batch.
        seed: of random scores.

    Raises:
        CaptureError, OptionError, ScoreError: as `prune`.
        VerifyError: the network is on the meta device.
    """
    _check_shares(shares)
    calibration = Calibration.of(data)
    own = not isinstance(network, Program)  # a class of one's own may chunk
    program = (
        network if isinstance(network, Program) else _captured(network, calibration, args, kwargs)
    )
    require_numbers(program)
    axes = solved(program)
    groups = find_groups(axes)
    limits = equal_parts(program, axes, groups) if own else NO_LIMITS
    how = importance_of(importance, calibration)
    ignored = ignored_parameters(list(axes.params), module_paths(program), ignore)
    scores = score_units(program, axes, groups, how, seed)
    found = find_candidates(axes, groups, scores, Target(), ignored, limits)
    counts = [_counts(found, i, shares) for i in range(len(found.groups))]
    dtype = own_precision(program)
    points = [
        change
        for i, numbers in enumerate(counts)
        for change in _points(program, axes, scores, found.order[i], numbers, dtype)
    ]
    branches = list(find_blocks(program)) if blocks else []
    points += [_without(program, block, dtype) for block in branches]
    before, after = losses(
        program, calibration, points, partial(Evaluator, program, dtype), progress=progress
    )
    rises = iter([loss - before for loss in after])
    tied = {name: tie for tie in limits.ties for name in tie}
    return Sensitivity(
        name=program.name,
        loss=before,
        shares=tuple(shares),
        groups=tuple(
            GroupResponse(
                g.name,
                tied.get(g.name, (g.name,)),
                len(order),
                tuple(numbers),
                tuple(next(rises) for _ in numbers),
            )
            for g, order, numbers in zip(found.groups, found.order, counts, strict=True)
        ),
        blocks=tuple(BlockResponse(b.path, b.kind, b.size, b.macs, next(rises)) for b in branches),
        remarks=(
            *program.remarks,
            *axes.remarks,
            *score_remarks(program, how),
            *_left(found),
        ),
        basis=Basis(program, scores, frozenset(ignored), limits),
    )


def _check_shares(shares: Sequence[float]) -> None:
    rising = all(a < b for a, b in pairwise(shares))
    if not shares or not rising or not 0 < shares[0] <= shares[-1] < 1:
        raise OptionError(
            f"shares={shares!r}",
            do="give shares that are removed, above 0, below 1, and ascending: (0.1, 0.25, 0.5, 0.75)",
        )


def _captured(
    model: torch.nn.Module, data: Calibration, args: Any, kwargs: Mapping[str, Any] | None
) -> Program:
    if args is None and kwargs is None:
        args, kwargs = data.call_of(data.first)
    return capture(model, args, kwargs)


def _counts(found: Candidates, at: int, shares: Sequence[float]) -> list[int]:
    """How many units a group loses at each share that is another number of units, at least one."""
    sizes = found.sizes
    wanted = [np.floor(sizes * share + 1e-9).astype(np.int64) for share in shares]
    return sorted({int(found.rounded(w, 1)[at]) for w in wanted} - {0})


def _points(
    program: Program,
    axes: Axes,
    scores: Any,
    order: IntArray,
    counts: Sequence[int],
    dtype: torch.dtype,
) -> list[Change]:
    """A group without its first units, for each of some numbers of units."""
    if not counts:
        return []
    most = Silenced(program, axes, order[: counts[-1]].reshape(-1), dtype)
    first = first_of(program.nodes, most.touches)
    gone = []
    for count in counts:
        mask = np.zeros(axes.n_units, bool)
        mask[order[:count]] = True
        give_back(axes, mask, scores)
        gone.append(np.flatnonzero(mask))
    return [Change(first, partial(Silenced, program, axes, units, dtype)) for units in gone]


def _without(program: Program, block: Block, dtype: torch.dtype) -> Change:
    return Change(block.branch, partial(Branchless, program, dtype, (block.branch,)))


def _left(found: Candidates) -> list[Remark]:
    return [
        Remark("missed", "sensitivity.left", name, "it was not measured", refusal.why)
        for name, refusal in found.refused.items()
    ]
