"""Tests of insert-gates, set-gates, decide-gated, shrink, delete-gated and absorb-gates together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxprune as fp
from fxprune.errors import PipelineError
from fxprune.graph.gate import gate_nodes, gates
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune.pipeline.result import Result
from fxprune.structure.blocks import find_blocks


def run(program: Program, text: str) -> Result:
    """Runs a pipeline; each rewrite is verified by it, twice where tensors are constant."""
    result = run_pipeline(program, text)
    for step in result.steps:
        if step.changed and not step.text.startswith(("set-", "decide-")):
            assert step.checks, step
    return result


class Block(nn.Module):
    """Two convolutions with norms, a projection where the width changes."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.down: nn.Module = nn.Identity()
        if stride > 1 or inputs != width:
            self.down = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.down(x))


class Resnet(nn.Module):
    """A stem, stages of blocks, a head."""

    def __init__(self, stages: tuple[int, ...] = (2, 2)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        width = 8
        self.stages = nn.ModuleList()
        for i, count in enumerate(stages):
            blocks = []
            for j in range(count):
                wide = width * 2 if i and j == 0 else width
                blocks.append(Block(width, wide, 2 if i and j == 0 else 1))
                width = wide
            self.stages.append(nn.Sequential(*blocks))
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


class Nested(nn.Module):
    """A block inside the branch of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.enter(x))
        y = y + torch.relu(self.inner(y))
        return self.head((x + self.leave(y)).mean((2, 3)))


@pytest.fixture(scope="module")
def resnet() -> Program:
    torch.manual_seed(0)
    return fp.capture(Resnet().eval(), torch.randn(2, 3, 8, 8))


PATHS = [f"stages.{i}.{j}" for i in range(2) for j in range(2)]


def test_block_gates_stand_on_every_branch(resnet: Program) -> None:
    gated = run(resnet, "insert-gates").program
    assert list(gates(gated)) == [f"{p}.gate" for p in PATHS]
    for nodes in gate_nodes(gated).values():
        (add,) = nodes[0].users
        assert add.target is torch.ops.aten.add.Tensor


@pytest.mark.parametrize("scope", ["block", "unit"])
def test_what_is_ignored_has_no_gate(resnet: Program, scope: str) -> None:
    every = gates(run(resnet, f"insert-gates{{scope={scope}}}").program)
    first = min(every)
    text = f"insert-gates{{scope={scope} ignore={first.removesuffix('.gate')}}}"
    assert gates(run(resnet, text).program).keys() == every.keys() - {first}


def test_a_branch_has_one_gate_only(resnet: Program) -> None:
    result = run(resnet, "insert-gates | insert-gates")
    assert len(gates(result.program)) == 4
    assert [r.code for r in result.select("insert-gates", "missed")] == ["insert-gates.gated"] * 4


@settings(max_examples=12, deadline=None)
@given(closed=st.sets(st.sampled_from(PATHS), min_size=1))
def test_any_blocks_may_go(resnet: Program, closed: set[str]) -> None:
    sets = " | ".join(f"set-gates{{where={p}}}" for p in sorted(closed))
    small = run(resnet, f"insert-gates | {sets} | delete-gated").program
    assert not gates(small)
    left = small.tensors()
    for path in PATHS:
        assert (f"{path}.conv1.weight" in left) == (path not in closed)
    assert "stages.1.0.down.0.weight" in left
    assert small(torch.randn(5, 3, 8, 8)).shape == (5, 5)


@pytest.mark.parametrize(
    ("closed", "gone"),
    [
        ({"outer"}, {"enter", "inner", "leave"}),
        ({"inner"}, {"inner"}),
        ({"inner", "outer"}, {"enter", "inner", "leave"}),
    ],
)
def test_nested_blocks_go_together_or_alone(closed: set[str], gone: set[str]) -> None:
    torch.manual_seed(0)
    program = fp.capture(Nested().eval(), torch.randn(2, 4, 6, 6))
    paths = {"inner" if b.parent else "outer": b.path for b in find_blocks(program)}
    gated = run(program, "insert-gates").program
    sets = " | ".join(f"set-gates{{where={paths[c]}}}" for c in sorted(closed))
    small = run(gated, f"{sets} | delete-gated").program
    names = {n.partition(".")[0] for n in small.tensors()}
    assert names == {"enter", "inner", "leave", "head"} - gone


def test_a_branch_goes_in_train_mode_with_its_norms() -> None:
    torch.manual_seed(0)
    program = fp.capture(Resnet().train(), torch.randn(4, 3, 8, 8))
    small = run(program, "insert-gates | set-gates{where=stages.0.*} | delete-gated").program
    assert not [n for n in small.tensors() if n.startswith("stages.0.")]
    assert small.training
    assert "stages.1.0.bn1.num_batches_tracked" in small.tensors()


def test_gates_that_are_not_named_stay(resnet: Program) -> None:
    gated = run(resnet, "insert-gates").program
    first, second, third, fourth = gates(gated)
    gates(gated)[first].set(0.0)
    gates(gated)[second].set(0.0)
    small = run(gated, f'delete-gated{{where="{first},{third}"}}').program
    assert list(gates(small)) == [second, fourth]
    assert len(find_blocks(small)) == 3


def test_a_gate_in_between_stays_and_says_so(resnet: Program) -> None:
    result = run(resnet, "insert-gates{kind=soft} | set-gates{value=0.5} | delete-gated")
    assert len(gates(result.program)) == 4
    missed = result.select("delete-gated", "missed")
    assert len(missed) == 4
    assert all("absorb-gates" in r.do for r in missed)


def test_unit_gates_weigh_every_sum_over_a_unit(resnet: Program) -> None:
    gated = run(resnet, "insert-gates{scope=unit kind=soft}").program
    sizes = sorted(g.theta.numel() for g in gates(gated).values())
    assert sizes == [8, 8, 8, 16, 16, 16]
    stream = next(p for p, nodes in gate_nodes(gated).items() if len(nodes) > 2)
    assert stream == "stem.gate"


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_unit_gates_at_zero_are_removed_units(resnet: Program, data: st.DataObject) -> None:
    gated = run(resnet, "insert-gates{scope=unit}").program
    path = data.draw(st.sampled_from(sorted(gates(gated))))
    size = gates(gated)[path].theta.numel()
    units = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=size - 1))
    text = ",".join(map(str, sorted(units)))
    closed = run(gated, f"set-gates{{where={path} units={text}}}").program
    small = run(closed, "delete-gated").program
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(small(x), closed(x), rtol=1e-4, atol=1e-5)
    before, after = (sum(t.numel() for t in p.module.parameters()) for p in (gated, small))
    assert after < before
    decided = run(closed, "decide-gated | shrink").program
    torch.testing.assert_close(decided(x), closed(x), rtol=1e-4, atol=1e-5)


def test_all_unit_gates_of_an_axis_at_zero_take_the_branch(resnet: Program) -> None:
    gated = run(resnet, "insert-gates{scope=unit}").program
    closed = run(gated, "set-gates{where=stages.0.0.conv1.gate}").program
    result = run(closed, "delete-gated")
    assert "stages.0.0.conv1.weight" not in result.program.tensors()
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(result.program(x), closed(x), rtol=1e-4, atol=1e-5)


def test_open_gates_get_no_noise_in_a_check(resnet: Program) -> None:
    """Gates of 1 go while units of others do: noise on them would be noise on one side only."""
    gated = run(resnet, "insert-gates{scope=unit kind=soft}").program
    some = sorted(gates(gated))[0]
    result = run(gated, f"set-gates{{where={some} units=1,2}} | delete-gated")
    assert result.plans
    assert not gates(result.program)


def test_layer_gates_leave_out_what_every_path_needs(resnet: Program) -> None:
    result = run(resnet, "insert-gates{scope=layer}")
    needed = [r for r in result.select("insert-gates", "missed") if "every path" in r.why]
    assert len(needed) == 2  # the stem and the head
    assert len(gates(result.program)) == 9


@pytest.mark.parametrize("where", ["*conv1*", "*conv2*", "*down*", "stages.0.*", "*"])
def test_layer_gates_at_zero_leave_constants(resnet: Program, where: str) -> None:
    closed = run(resnet, f"insert-gates{{scope=layer}} | set-gates{{where={where}}}").program
    if where == "*":  # both operands of some sums are 0: the network's output is constant
        result = run(closed, "delete-gated")
        assert len(list(result.program.nodes)) < len(list(closed.nodes))
        return
    small = run(closed, "delete-gated").program
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(small(x), closed(x), rtol=1e-4, atol=1e-5)
    assert not gates(small)


@pytest.mark.parametrize("scope", ["block", "unit", "layer"])
@pytest.mark.parametrize("value", [0.7, -1.5])
def test_soft_gates_go_into_weights(resnet: Program, scope: str, value: float) -> None:
    text = f"insert-gates{{scope={scope} kind=soft}} | set-gates{{value={value}}} | absorb-gates"
    result = run(resnet, text)
    stay = gates(result.program)
    if value > 0:
        assert not stay
    for path in stay:  # a maximum does not commute with a negative gate
        assert any(path in r.what for r in result.select("absorb-gates", "missed"))


def test_heads_have_gates_of_their_own() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    program = fp.capture(layer, torch.randn(2, 5, 16))
    gated = run(program, "insert-gates{scope=head}").program
    (gate,) = gates(gated).values()
    assert gate.theta.shape == (4,)
    small = run(gated, "set-gates{units=1,3} | delete-gated").program
    assert small.tensors()["self_attn.out_proj.weight"].shape == (16, 8)


class Grouped(nn.Module):
    """Heads that share keys, rotated; grouped convolutions with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(16, 32), nn.Linear(16, 2 * 16)
        self.out = nn.Linear(32, 16)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, 4, 8).transpose(1, 2)
        q = q + torch.cat((-q[..., 4:], q[..., :4]), -1)
        k, v = self.kv(x).view(b, t, 2, 2, 8).permute(2, 0, 3, 1, 4)
        k, v = (y.repeat_interleave(2, 1) for y in (k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, 32))
        z = x.view(b, t, 4, 4).permute(0, 3, 1, 2)
        y = torch.relu(self.grouped(torch.relu(self.conv(z))))
        weight = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return z + self.last(y * weight)


@pytest.fixture(scope="module")
def grouped() -> Program:
    torch.manual_seed(0)
    return fp.capture(Grouped().eval(), torch.randn(2, 5, 16))


@pytest.mark.parametrize("scope", ["unit", "head"])
def test_units_that_stand_for_several_positions(grouped: Program, scope: str) -> None:
    gated = run(grouped, f"insert-gates{{scope={scope} kind=soft}}")
    paths = gates(gated.program)
    assert paths
    assert not gated.select("insert-gates", "missed")
    for path, gate in paths.items():
        if gate.theta.numel() < 2:
            continue
        closed = run(gated.program, f"set-gates{{where={path} units=0}}").program
        small = run(closed, "delete-gated").program
        x = torch.randn(3, 5, 16)
        torch.testing.assert_close(small(x), closed(x), rtol=1e-4, atol=1e-5)
        assert sum(t.numel() for t in small.module.parameters()) < sum(
            t.numel() for t in closed.module.parameters()
        )
        between = run(gated.program, f"set-gates{{where={path} value=0.5}} | absorb-gates").program
        assert between(x).shape == x.view(3, 5, 4, 4).permute(0, 3, 1, 2).shape


@pytest.mark.parametrize("where", ["squeeze", "excite", "conv", "grouped", "[!o]*"])
def test_constants_behind_closed_layers(grouped: Program, where: str) -> None:
    closed = run(grouped, f"insert-gates{{scope=layer}} | set-gates{{where={where}}}").program
    result = run(closed, "delete-gated")
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(result.program(x), closed(x), rtol=1e-4, atol=1e-5)


def test_a_pending_decision_keeps_other_rewrites_out(resnet: Program) -> None:
    with pytest.raises(fp.FxpruneError, match="shrink"):
        run_pipeline(resnet, "insert-gates | set-gates | decide-gated | drop-identity")


def test_nothing_of_the_given_program_changes(resnet: Program) -> None:
    before = {k: v.clone() for k, v in resnet.tensors().items()}
    code = resnet.module.code
    run(resnet, "insert-gates | set-gates{where=stages.1.*} | delete-gated")
    assert resnet.module.code == code
    assert all(torch.equal(before[k], v) for k, v in resnet.tensors().items())


def test_failure_is_rolled_back(resnet: Program) -> None:
    with pytest.raises(PipelineError) as caught:
        run_pipeline(resnet, lambda gm: 1 / 0)
    assert caught.value.program is resnet


def test_groups_that_share_an_axis_have_a_gate_each(grouped: Program) -> None:
    gated = run(grouped, "insert-gates{scope=unit}").program
    thetas = {n for n in gated.tensors() if n.endswith(".theta")}
    assert thetas == {f"{path}.theta" for path in gates(gated)}
    both = run(gated, "set-gates{where=conv.gate* units=0} | set-gates{where=grouped.gate units=0}")
    small = run(both.program, "delete-gated").program
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(small(x), both.program(x), rtol=1e-4, atol=1e-5)


def test_inner_gates_leave_residual_streams(resnet: Program) -> None:
    gated = run(resnet, "insert-gates{scope=inner}").program
    assert list(gates(gated)) == [f"{p}.conv1.gate" for p in PATHS]


class Returned(nn.Module):
    """A branch whose inner value the network returns, as a key-value cache is; another one that is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        key = self.one(x)
        y = x + self.two(torch.relu(key))
        return y + torch.relu(self.three(y)), key


def test_a_branch_with_a_value_that_is_returned_is_named() -> None:
    result = run(fp.capture(Returned().eval(), torch.randn(2, 4)), "insert-gates")
    assert list(gates(result.program)) == ["three.gate"]
    (left,) = result.select("insert-gates", "missed")
    assert left.code == "insert-gates.read-outside"
    assert "computes linear, which the network returns" in left.why
    assert "use_cache=False" in left.do
