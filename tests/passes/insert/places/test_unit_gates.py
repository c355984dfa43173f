"""Tests of unit gates on streams that are concatenated from several layers, as DenseNet's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.analysis.cache import solved
from fxprune.cost.macs import node_macs
from fxprune.graph.gate import gate_nodes, gates
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune.pipeline.result import Result
from fxprune.structure.expected_cost import ExpectedCost
from fxprune.structure.paths import operator


class DenseLayer(nn.Module):
    """Norm, activation and convolution of all that came before."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 6, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, growth, 3, padding=1, bias=False)

    def forward(self, parts: list[torch.Tensor]) -> torch.Tensor:
        y = self.conv1(torch.relu(self.norm1(torch.cat(parts, 1))))
        return self.conv2(torch.relu(self.norm2(y)))


class DenseNet(nn.Module):
    """A stem, a dense block, a transition, a dense block, a head behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.ModuleList(DenseLayer(8 + 4 * i, 4) for i in range(2))
        self.norm, self.transition = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1)
        self.second = nn.ModuleList(DenseLayer(8 + 4 * i, 4) for i in range(2))
        self.last, self.head = nn.BatchNorm2d(16), nn.Linear(16 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.stem(x)]
        for layer in self.first:
            parts.append(layer(parts))
        y = torch.relu(self.norm(torch.cat(parts, 1)))
        parts = [nn.functional.avg_pool2d(self.transition(y), 2)]
        for layer in self.second:
            parts.append(layer(parts))
        y = torch.relu(self.last(torch.cat(parts, 1)))
        return self.head(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))


GROUPS = ["stem", "transition"] + [
    f"{b}.{i}.conv{j}" for b in ("first", "second") for i in (0, 1) for j in (1, 2)
]
X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def dense() -> Program:
    torch.manual_seed(0)
    model = DenseNet().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return fp.capture(model, torch.randn(2, 3, 8, 8))


def run(program: Program, text: str) -> Result:
    """Runs a pipeline; what keeps the function was checked in float64."""
    result = run_pipeline(program, text)
    assert all(s.checks for s in result.steps if s.changed and not s.text.startswith("set-"))
    return result


@pytest.mark.parametrize("kind", ["hard", "soft", "bernoulli"])
def test_every_layer_of_a_dense_block_has_gates(dense: Program, kind: str) -> None:
    result = run(dense, f"insert-gates{{scope=unit kind={kind}}}")
    assert not result.select("insert-gates", "missed")
    assert sorted(gates(result.program)) == sorted(f"{g}.gate" for g in GROUPS)
    places = gate_nodes(result.program)
    assert len(places["stem.gate"]) == 3  # alone, behind one layer, behind two
    for nodes in places.values():
        assert [node.args[2] for node in nodes] == [True] + [False] * (len(nodes) - 1)


@pytest.mark.parametrize("group", GROUPS)
def test_closed_units_of_a_concatenation_go(dense: Program, group: str) -> None:
    gated = run(dense, "insert-gates{scope=unit}").program
    closed = run(gated, f"set-gates{{where={group} units=0,2}}").program
    small = run(closed, "delete-gated").program
    torch.testing.assert_close(small(X), closed(X), rtol=1e-4, atol=1e-5)
    before, after = (p.tensors()[f"{group}.weight"].shape for p in (dense, small))
    assert after[0] == before[0] - 2
    assert not gates(small)


def test_units_of_several_layers_go_at_once_and_leave_no_trace(dense: Program) -> None:
    sets = " | ".join(f"set-gates{{where={g} units=1}}" for g in GROUPS)
    closed = run(dense, f"insert-gates{{scope=unit}} | {sets}").program
    small = run(closed, "delete-gated").program
    torch.testing.assert_close(small(X), closed(X), rtol=1e-4, atol=1e-5)
    names = [operator(n) for n in small.nodes]
    assert "split_with_sizes" not in names
    assert names.count("cat") == [operator(n) for n in dense.nodes].count("cat")


def test_of_a_closed_layer_of_a_dense_block_one_unit_stays(dense: Program) -> None:
    closed = run(dense, "insert-gates{scope=unit} | set-gates{where=first.0.conv2}").program
    result = run(closed, "delete-gated")
    torch.testing.assert_close(result.program(X), closed(X), rtol=1e-4, atol=1e-5)
    assert result.program.tensors()["first.0.conv2.weight"].shape[0] == 1
    assert list(gates(result.program)) == ["first.0.conv2.gate"]
    assert [r.code for r in result.select(kind="missed")] == ["delete-gated.last"]


def test_open_gates_of_parts_leave_no_trace(dense: Program) -> None:
    again = run(dense, "insert-gates{scope=unit} | delete-gated").program
    assert [n.target for n in again.nodes] == [n.target for n in dense.nodes]


def test_a_bernoulli_gate_draws_once_for_all_of_its_parts(dense: Program) -> None:
    torch.manual_seed(0)
    program = fp.capture(DenseNet().train(), torch.randn(2, 3, 8, 8))
    gated = run_pipeline(program, "insert-gates{scope=unit kind=bernoulli}").program
    for gate in gates(gated).values():
        gate.set(0.5)
    gated(X).sum().backward()
    for gate in gates(gated).values():
        assert gate.theta.grad is not None
        assert bool(gate.theta.grad.any())


def test_the_expected_cost_of_a_dense_block_is_that_of_the_smaller_network(dense: Program) -> None:
    gated = run(dense, "insert-gates{scope=unit}").program
    thetas = {}
    for path, gate in gates(gated).items():
        thetas[path] = torch.ones_like(gate.theta.detach())
        thetas[path][1] = 0
        gate.set(thetas[path])
    expected = ExpectedCost(gated, solved(gated))(thetas)
    small = run(gated, "delete-gated").program
    assert int(expected.macs) == sum(node_macs(small).values())
    assert int(expected.params) == sum(p.numel() for p in small.module.parameters())


def test_gates_of_parts_compile_without_a_break(dense: Program) -> None:
    gated = run(dense, "insert-gates{scope=unit kind=soft}").program
    compiled = torch.compile(gated.module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), gated(X), rtol=1e-5, atol=1e-5)
