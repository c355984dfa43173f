"""What a gated network is expected to cost, as a share of what it cost at the start."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch

from fxprune.analysis.cache import remember, solved
from fxprune.cost import node_macs
from fxprune.graph.gate import Gate, gate_nodes, gates
from fxprune.graph.leaf import is_inside_leaf
from fxprune.graph.program import Program
from fxprune.process.random_state import random_state_kept
from fxprune.report.latency import compare_latency
from fxprune.structure.blocks import find_blocks
from fxprune.structure.expected_cost import Expected, ExpectedCost
from fxprune.training.sharding import copy_whole
from fxprune_passes.methods.gates.theta_gradients import mean_of_all
from fxprune_passes.methods.method import for_use

Tensor = torch.Tensor
Metric = Literal["macs", "params", "latency"]


class CostShare:
    """The expected MACs, parameters or latency of a network, relative to the network at the start.

    MACs and parameters are those of `fxprune.structure.expected_cost`: at thetas of 0 and 1 they are exact. Latency
    is a model (**a reconstruction**): a block takes the time t by which the network gets faster without it. Of that a
    part f stays as long as any of the block's gated units does: with a share u of them it takes t (f + (1 - f) u).
    Units outside of gated blocks take t u; everything else takes the rest. t and f are measured once, in eval mode on
    the example inputs, for each block alone: without it, and with every second of its units. `correct` measures a
    whole network and stretches the model to meet it.

    Args:
        program: the network at the start.
        metric: `macs`, at the batch size of the example, `params` or `latency`.

    Attributes:
        start: MACs and parameters of the network at the start.
        times: for latency: t as a share of the time of the whole, by the paths of the gates of blocks, and of those
            on units outside of them.
        fixed: for latency: f by the paths of the gates of blocks.
        around: for latency: the gate of the block around each unit gate, by path.
        sizes: for latency: the number of gates by the paths of all gates at the start.
        ends: for latency: the share of open gates when a gate was removed, by its path.
        stretch: for latency: the factor of what the model says is saved.
    """

    def __init__(self, program: Program, metric: Metric) -> None:
        self.metric = metric
        self.start = present_cost(program)
        self.times: dict[str, float] = {}
        self.fixed: dict[str, float] = {}
        self.around: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.ends: dict[str, float] = {}
        self.stretch = 1.0
        self._start: Program | None = None

    def __call__(self, program: Program, thetas: Mapping[str, Tensor]) -> Tensor:
        """The expected share `[]`, differentiable in the thetas.

        Args:
            program: the network at present.
            thetas: by gate path, for all or some of its gates; others are as they are settled.
        """
        if self.metric == "latency":
            return self._latency(thetas)
        expected, (macs, params) = expected_cost(program, thetas), self.start
        return expected.macs / macs if self.metric == "macs" else expected.params / params

    def _latency(self, thetas: Mapping[str, Tensor]) -> Tensor:
        total = torch.ones((), dtype=torch.float64)
        opened = {path: total.new_tensor(end) for path, end in self.ends.items()}
        for path, theta in thetas.items():
            if path not in self.sizes:
                continue  # nothing is measured yet
            opened[path] = theta.double().sum().cpu() / self.sizes[path]
        for path, time in self.times.items():
            inside = [opened[p] for p in self._inside(path)]
            left = torch.stack(inside).mean() if inside else total.new_ones(())
            fixed = self.fixed.get(path, 0.0)
            left = opened[path] * (fixed + (1 - fixed) * left)
            total = total - self.stretch * time * (1 - left)
        return total

    def _inside(self, block: str) -> list[str]:
        """The paths of the unit gates in a block."""
        return [path for path, around in self.around.items() if around == block]

    def measure(self, program: Program, *, rounds: int = 21) -> None:
        """Measures what blocks and units take, where latency asks for it and it is not known yet."""
        if self.metric != "latency" or self.times:
            return
        found = gates(program)
        self.around = dict(blocks_around(program))
        self.sizes = {path: gate.theta.numel() for path, gate in found.items()}
        blocks = [path for path, gate in found.items() if not gate.theta.dim()]
        units = [p for p in found if p not in blocks and p not in self.around]
        halved = {path: half for path, gate in found.items() if (half := _half(gate)) is not None}
        inside = {b: {p: halved[p] for p in self._inside(b) if p in halved} for b in blocks}
        with random_state_kept():
            whole = self._start = _at(program, {})

            def saved(thetas: Mapping[str, Tensor | float]) -> float:
                return 1 - compare_latency(whole, _at(program, thetas), rounds=rounds).ratio

            without = [saved({path: 0.0}) for path in blocks]
            thinned = [saved(inside[path]) if inside[path] else 0.0 for path in blocks]
            alone = [2 * saved({p: halved[p]}) if p in halved else 0.0 for p in units]
        measured = torch.tensor([*without, *alone, *thinned], dtype=torch.float64)
        times = mean_of_all(measured).clamp(min=1e-3)
        count = len(blocks) + len(units)
        fixed = (1 - 2 * times[count:] / times[: len(blocks)]).clamp(0, 1)
        self.times = dict(zip([*blocks, *units], times[:count].tolist(), strict=True))
        self.fixed = dict(zip(blocks, fixed.tolist(), strict=True))

    def correct(self, program: Program, *, rounds: int = 41) -> None:
        """Measures the network with its gates as they are, each at 0 or 1; the model then gives what was measured.

        It is compared with the network at the start; behind a checkpoint, which does not keep that, with the present
        one with open gates.
        """
        if self.metric != "latency":
            return
        found = gates(program)
        with torch.no_grad(), random_state_kept():
            thetas = {path: gate.theta for path, gate in found.items()}
            opened = {path: torch.ones_like(theta) for path, theta in thetas.items()}
            start = self._start or _at(program, {})
            reference = 1.0 if self._start else float(self._latency(opened))
            ratio = compare_latency(start, _at(program, thetas), rounds=rounds).ratio
            saved = 1 - float(self._latency(thetas))
        measured = 1 - reference * float(mean_of_all(torch.tensor(ratio, dtype=torch.float64)))
        if saved > 0 and measured > 0:
            self.stretch *= measured / saved

    def follow(self, before: Mapping[str, Tensor], found: Mapping[str, Gate]) -> None:
        """Notes the gates that a removal took.

        Args:
            before: which thetas were open before, as booleans by gate path.
            found: the gates that are left.
        """
        for path, opened in before.items():
            if path not in found and path in self.sizes:
                self.ends[path] = int(opened.sum()) / self.sizes[path]

    def state_dict(self) -> dict[str, Any]:
        """What is measured and noted."""
        names = ("start", "times", "fixed", "around", "sizes", "ends", "stretch")
        return {name: copy.copy(getattr(self, name)) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, copy.copy(value))


def _at(program: Program, thetas: Mapping[str, Tensor | float]) -> Program:
    """A copy of the network to be timed, with gates at 0 or 1; those that are not named are open."""
    twin = copy_whole(program)
    for name, gate in gates(twin).items():
        gate.set(thetas.get(name, 1.0))
    return for_use(twin, verify=False)


def _half(gate: Gate) -> Tensor | None:
    """Thetas of a gate on units with every second one closed; None where there are not two."""
    if gate.theta.numel() < 2:
        return None
    return (torch.arange(gate.theta.numel()) % 2 == 0).to(gate.theta)


def expected_cost(program: Program, thetas: Mapping[str, Tensor]) -> Expected:
    """Expected MACs and parameters where some gates have given thetas, and others are as they are settled."""
    cost = remember(program, ExpectedCost, lambda: ExpectedCost(program, solved(program)))
    others = {p: g.settled() for p, g in gates(program).items() if p not in thetas}
    return cost({**others, **thetas})


def present_cost(program: Program) -> tuple[int, int]:
    """The MACs at the batch size of the example, and the number of parameters without those of gates."""
    named = program.module.named_parameters()
    sizes = (p.numel() for name, p in named if not is_inside_leaf(program.module, name))
    return sum(node_macs(program).values()), sum(sizes)


def blocks_around(program: Program) -> dict[str, str]:
    """For each unit gate by path, the path of the Bernoulli gate on the nearest block around it."""
    return remember(program, blocks_around, lambda: _blocks_around(program))


def _blocks_around(program: Program) -> dict[str, str]:
    places = gate_nodes(program)
    found = {p: g for p, g in gates(program).items() if g.kind == "bernoulli"}
    blocks = [b for b in find_blocks(program) if str(b.branch.target) in found]
    around: dict[str, str] = {}
    for block in sorted(blocks, key=lambda b: b.depth):
        for path, gate in found.items():
            if gate.theta.dim() and all(place in block.nodes for place in places[path]):
                around[path] = str(block.branch.target)
    return around
