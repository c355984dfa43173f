"""The losses of a network that is changed in many ways, each of which begins somewhere on the way through it.

What comes before a change is run once for each batch, and every changed run goes on from there. Of the plain run only
the values are held that are still to be read, and of the changed ones, one at a time: that is the memory of two
runs of one batch, however many changes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxprune.calibration import Calibration
from fxprune.calibration.calibration import device_of
from fxprune.graph.evaluate import Evaluator, Provide
from fxprune.graph.memory import written_memory
from fxprune.graph.program import Program
from fxprune.process.progress import step_bar

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Change:
    """One way in which a network is changed.

    Attributes:
        first: the first node that computes something else.
        evaluator: makes what runs the changed network.
    """

    first: fx.Node
    evaluator: Callable[[], Evaluator]


class Branchless(Evaluator):
    """Runs a program with some branches at 0.

    Args:
        program: the program to run.
        dtype: the floating-point type of the run.
        off: the nodes whose values are 0.
        provide: see `Evaluator`.
    """

    def __init__(
        self,
        program: Program,
        dtype: torch.dtype,
        off: Collection[fx.Node] = (),
        provide: Provide | None = None,
    ) -> None:
        super().__init__(program, dtype, provide)
        self._off = frozenset(off)

    def compute(self, node: fx.Node) -> Any:
        """The value of one node, or zeros in its place."""
        value = super().compute(node)
        return torch.zeros_like(value) if node in self._off else value


def own_precision(program: Program) -> torch.dtype:
    """The type of a program's first parameter of real numbers; float32 where it has none."""
    types = (p.dtype for p in program.module.parameters() if p.is_floating_point())
    return next(types, torch.float32)


def losses(
    program: Program,
    data: Calibration,
    changes: Sequence[Change],
    plain: Callable[[], Evaluator],
    *,
    progress: bool = False,
) -> tuple[float, list[float]]:
    """The mean loss over the batches of the network as it is, and after each change by itself.

    A network that writes into tensors in place is run anew for each change.

    Args:
        program: the network.
        data: batches with a loss.
        changes: of the network.
        plain: makes what runs the network as it is.
        progress: whether a bar over the losses of each batch is shown on stderr.

    Raises:
        ScoreError: nothing says what the loss is, or it is not finite.
    """
    nodes = list(program.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    anew = bool(written_memory(program.graph))
    order = sorted(range(len(changes)), key=lambda i: place[changes[i].first])
    sums, count = [0.0] * (len(changes) + 1), 0
    with step_bar(progress) as bar:
        for batch in data.on(device_of(program.module)):
            task = bar.add_task(f"batch {count + 1}", total=len(sums))
            args, kwargs = data.call_of(batch)
            run, done = plain(), 0
            run.begin(args, kwargs)
            for i in order:
                fork, start = changes[i].evaluator(), 0
                if anew:
                    fork.begin(args, kwargs)
                else:
                    start = place[changes[i].first]
                    run.go_on(nodes[done:start])
                    done = max(done, start)
                    fork.env = dict(run.env)
                sums[i] += _loss(program, data, batch, fork.go_on(nodes[start:]))
                bar.advance(task)
            sums[-1] += _loss(program, data, batch, run.go_on(nodes[done:]))
            bar.remove_task(task)
            count += 1
    means = [x / count for x in sums]
    return means[-1], means[:-1]


def _loss(program: Program, data: Calibration, batch: Any, value: Any) -> float:
    outputs = program.graph.process_outputs(value)
    with torch.no_grad():
        return float(data.loss_of(data.outputs(_Answer(outputs), batch), batch))


class _Answer(nn.Module):
    """Stands for a network whose outputs are known already."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self._outputs = outputs

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._outputs


def first_of(nodes: Iterable[fx.Node], changed: Callable[[fx.Node], bool]) -> fx.Node:
    """The first node that computes something else; the last one where none does."""
    last = None
    for node in nodes:
        last = node
        if changed(node):
            return node
    assert last is not None
    return last
