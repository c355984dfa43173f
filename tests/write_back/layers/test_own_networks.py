"""Tests of fxprune.write_back.layers with networks of one's own."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.write_back import Removed, written

Tensor = torch.Tensor
WIDTH = 8


def without(
    model: nn.Module, args: Any, *where: str, more: str = "", scope: str = "block"
) -> fp.Result:
    """The model after some gates were set to 0."""
    closed = " | ".join(f"set-gates{{where={w} value=0}}" for w in where)
    text = f"insert-gates{{scope={scope}}} | {closed} | delete-gated{more}"
    return fp.run(model.eval(), args, text)


def assert_same(model: nn.Module, result: fp.Result, *args: Tensor) -> None:
    """Holds a written model against the result's program, in float64."""
    program = copy.deepcopy(result.program.module).double()
    double = copy.deepcopy(model).double()
    args = tuple(x.double() if x.is_floating_point() else x for x in args)
    torch.testing.assert_close(double(*args), program(*args), rtol=1e-9, atol=1e-9)


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.bernoulli(x.new_full((len(x), *[1] * (x.dim() - 1)), 0.9))


class Block(nn.Module):
    """Two branches, and numbers that say which block it is."""

    def __init__(self, place: int = 0) -> None:
        super().__init__()
        self.place = place
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH))
        self.gamma = nn.Parameter(torch.full((WIDTH,), 1e-5))
        self.drop = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.mix(self.norm(x)).tanh())
        return x + self.drop(self.gamma * self.mlp(x))


class Net(nn.Module):
    blocks: Any

    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(4, WIDTH), blocks, nn.Linear(WIDTH, 3)

    def run(self, x: Tensor) -> Any:
        return self.blocks(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self.stem(x)))


class Loop(Net):
    """Goes through its blocks by a count that it keeps."""

    def __init__(self, count: int = 4) -> None:
        super().__init__(nn.ModuleList(Block(i) for i in range(count)))
        self.count, self.depth, self.rates = count, count, [0.1 * i for i in range(count)]

    def run(self, x: Tensor) -> Tensor:
        for i in range(self.count):
            x = self.blocks[i](x)
        return x


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def test_whole_blocks_leave_a_list_and_counts_follow() -> None:
    model = Loop()
    before = copy.deepcopy(model.state_dict())
    result = without(model, X, "blocks.0.*", "blocks.2.*")
    found = written(model, result)
    smaller = found.model
    assert type(smaller) is Loop
    assert len(smaller.blocks) == smaller.count == smaller.depth == 2
    assert [b.place for b in smaller.blocks] == [0, 1]
    assert found.names["blocks.1.mix.weight"] == "blocks.3.mix.weight"
    assert_same(smaller, result, X)
    fresh = Loop(2)
    fresh.load_state_dict(smaller.state_dict())
    assert_same(fresh.eval(), result, X)
    assert [b.place for b in model.blocks] == [0, 1, 2, 3]
    assert model.count == 4
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
    assert smaller.head.weight is not model.head.weight


def test_a_number_that_nothing_reads_is_named() -> None:
    class Other(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.window = 4

    remarks = written(model := Other(), without(model, X, "blocks.1.*")).remarks
    assert {r.where for r in remarks} == {"window"}
    assert {r.code for r in remarks} == {"write-back.count-undecided"}


def test_blocks_leave_a_sequence() -> None:
    model = Net(nn.Sequential(*(Block() for _ in range(3))))
    result = without(model, X, "blocks.1.*")
    smaller = fp.write_back(model, result)
    assert [n for n, _ in smaller.blocks.named_children()] == ["0", "1"]
    assert_same(smaller, result, X)


def test_names_with_numbers_are_renumbered() -> None:
    blocks = nn.Sequential()
    for i in range(1, 4):
        blocks.add_module(f"block{i}", Block())
    model = Net(blocks)
    result = without(model, X, "blocks.block2*")
    smaller = fp.write_back(model, result)
    assert [n for n, _ in smaller.blocks.named_children()] == ["block1", "block2"]
    assert_same(smaller, result, X)


def test_a_part_of_a_block_is_replaced() -> None:
    model = Loop()
    result = without(model, X, "blocks.1.mix*", "blocks.2.mlp*")
    smaller = fp.write_back(model, result)
    assert isinstance(smaller.blocks[1].mix, Removed)
    assert isinstance(smaller.blocks[1].norm, nn.Identity)
    assert "returns zeros" in str(smaller.blocks[2].mlp)
    assert len(smaller.blocks) == smaller.count == 4
    assert_same(smaller, result, X)
    assert_same(smaller, result, torch.randn(5, 4))


def test_all_blocks() -> None:
    model = Loop()
    result = without(model, X, "*")
    smaller = fp.write_back(model, result)
    assert len(smaller.blocks) == 0
    assert_same(smaller, result, X)


def test_a_fold_behind_a_deletion_is_no_matter() -> None:
    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.bn(self.conv(x))).relu()

    stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU())
    model = nn.Sequential(stem, Conv(), Conv(), Conv(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(2, 3, 6, 6)
    model(x)
    result = without(model, x, "2*", more=" | fold-batchnorm | fuse-linear | dead-code")
    smaller = fp.write_back(model, result)
    assert len(smaller) == 5
    assert isinstance(smaller[1].bn, nn.BatchNorm2d)
    torch.testing.assert_close(smaller(x), result.program(x), rtol=1e-4, atol=1e-5)


class Stage(nn.Module):
    """A block whose shortcut changes the width, with an activation that is no identity on its own outputs."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1)
        self.bn = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, "same")
        self.short = nn.Conv2d(width, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(torch.nn.functional.silu(self.bn(self.conv1(x))))
        out += self.short(x)
        return torch.nn.functional.silu(out)


@pytest.mark.parametrize("where", ["0.*", "1.*"])
def test_the_branch_of_a_block_that_does_more_returns_zeros(where: str) -> None:
    model = nn.Sequential(Stage(3, 6, 2), Stage(6, 6, 1), nn.AdaptiveAvgPool2d(1))
    x = torch.randn(2, 3, 9, 9)
    result = without(model, x, where)
    smaller = fp.write_back(model, result)
    assert len(smaller) == 3
    assert isinstance(smaller[int(where[0])].conv2, Removed)
    assert_same(smaller, result, x)
    assert_same(smaller, result, torch.randn(3, 3, 9, 9))


def test_lists_side_by_side_lose_the_same_elements() -> None:
    class Beside(Net):
        def __init__(self) -> None:
            super().__init__(nn.ModuleList(nn.Linear(WIDTH, 6) for _ in range(3)))
            self.down = nn.ModuleList(nn.Linear(6, WIDTH) for _ in range(3))
            self.after = [None, torch.tanh, None]

        def run(self, x: Tensor) -> Tensor:
            for up, down, f in zip(self.blocks, self.down, self.after, strict=True):
                x = x + down(up(x).relu())
                x = f(x) if f is not None else x
            return x

    model = Beside()
    result = without(model, X, "down#1*")
    smaller = fp.write_back(model, result)
    assert len(smaller.blocks) == len(smaller.down) == 2
    assert smaller.after == [torch.tanh, None]
    assert_same(smaller, result, X)


class Wrapped(Net):
    """Lists of lists, as some write a transformer."""

    def __init__(self) -> None:
        def mlp() -> nn.Module:
            return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh())

        super().__init__(nn.ModuleList(nn.ModuleList([mlp(), mlp()]) for _ in range(3)))

    def run(self, x: Tensor) -> Tensor:
        for a, b in self.blocks:
            x = a(x) + x
            x = b(x) + x
        return x


@pytest.mark.parametrize(("where", "count"), [("blocks#[34]*", 2), ("blocks#3*", 3)])
def test_lists_of_lists(where: str, count: int) -> None:
    model = Wrapped()
    result = without(model, X, where)
    smaller = fp.write_back(model, result)
    assert len(smaller.blocks) == count
    assert_same(smaller, result, X)


def test_a_block_that_stands_in_a_sequence_twice() -> None:
    shared = Block()
    model = Net(nn.Sequential(shared, Block(), shared))
    result = without(model, X, "blocks.0.*")
    smaller = fp.write_back(model, result)
    assert len(smaller.blocks) == 2
    assert smaller.blocks[1].mix.weight.equal(shared.mix.weight)
    assert_same(smaller, result, X)


class Again(Net):
    """Calls one block three times."""

    def run(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.blocks(x)
        return x


def test_a_block_that_is_called_again() -> None:
    model = Again(Block())
    result = without(model, X, "blocks.*#2*")
    assert result.zeros
    with pytest.raises(fp.FxpruneError, match="without a deleted layer") as error:
        fp.write_back(model, result)
    assert "more than once" in error.value.why
    result = without(model, X, "*")
    smaller = fp.write_back(model, result)
    assert isinstance(smaller.blocks, nn.Identity)
    assert_same(smaller, result, X)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return (x + torch.sigmoid(self.inner(x))).sin()


def test_what_cannot_be_expressed_is_refused_and_the_model_restored() -> None:
    model = Net(nn.Sequential(Block(), Gated()))
    state = copy.deepcopy(model)
    result = without(model, X, "blocks.1*")
    with pytest.raises(fp.FxpruneError, match="cannot be written without a deleted layer") as error:
        fp.write_back(model, result, inplace=True)
    assert error.value.where == "blocks.1"
    assert str(model) == str(state)
    assert all(torch.equal(x, state.state_dict()[n]) for n, x in model.state_dict().items())
    torch.testing.assert_close(model(X), state.eval()(X))


def test_in_place() -> None:
    model = Loop()
    weight = model.head.weight
    result = without(model, X, "blocks.1.*")
    assert fp.write_back(model, result, inplace=True) is model
    assert model.head.weight is weight
    assert len(model.blocks) == 3
    assert_same(model, result, X)


@pytest.mark.parametrize(
    "pipeline",
    [
        "insert-gates | set-gates{where=blocks.1* value=0.5} | absorb-gates",
        "insert-gates | set-gates{where=blocks.1* value=0.5}",
        "insert-skips",
    ],
)
def test_more_than_deletions_is_refused(pipeline: str) -> None:
    plain = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    model = Net(plain if "skips" in pipeline else nn.Sequential(Block(), Block())).eval()
    if "set-gates" in pipeline:
        result = fp.run(model, X, pipeline.replace("insert-gates", "insert-gates{kind=soft}"))
    else:
        result = fp.run(model, X, pipeline)
    with pytest.raises(fp.FxpruneError, match="more than layers has changed") as error:
        fp.write_back(model, result)
    assert pipeline.partition(" | ")[2][:9] in error.value.why


def test_a_pipeline_that_only_rewrites() -> None:
    model = Net(nn.Sequential(Block(), Block())).eval()
    result = fp.run(model, X, "drop-identity | fuse-linear | dead-code")
    smaller = fp.write_back(model, result)
    assert str(smaller) == str(model)
    assert_same(smaller, result, X)


def test_a_layer_inside_a_branch() -> None:
    model = Loop()
    result = without(model, X, "blocks.1.mlp.0*", scope="layer")
    smaller = fp.write_back(model, result)
    assert isinstance(smaller.blocks[1].mlp[0], Removed)
    assert_same(smaller, result, X)


def test_then_narrower() -> None:
    model = Loop()
    smaller = fp.write_back(model, without(model, X, "blocks.1.*"))
    outcome = fp.prune(smaller, X, keep=0.6)
    narrow = fp.write_back(smaller, outcome.plan)
    torch.testing.assert_close(narrow(X), outcome.program(X), rtol=1e-4, atol=1e-5)
    assert len(narrow.blocks) == 3


def test_units_in_the_same_run_are_refused() -> None:
    model = Loop()
    text = "insert-gates | set-gates{where=blocks.1.* value=0} | delete-gated"
    units = "insert-gates{scope=inner} | set-gates{units=0,1 value=0} | delete-gated"
    result = fp.run(model.eval(), X, f"{text} | {units}")
    with pytest.raises(fp.FxpruneError, match="in the same run"):
        fp.write_back(model, result)


def test_another_model() -> None:
    model = Loop()
    result = without(model, X, "blocks.1.*")
    with pytest.raises(fp.FxpruneError, match="another model"):
        fp.write_back(Loop(3), result)


def test_weights_that_were_learned_since() -> None:
    model = Loop()
    result = without(model, X, "blocks.1.*")
    program = copy.deepcopy(result.program)
    with torch.no_grad():
        for p in program.module.parameters():
            p.mul_(1.5)
    smaller = fp.write_back(model, program)
    torch.testing.assert_close(smaller(X), program(X))
    assert len(smaller.blocks) == 3


def test_a_saved_program(tmp_path: Any) -> None:
    model = Loop()
    result = without(model, X, "blocks.1.*")
    fp.save(result.program, tmp_path / "program")
    smaller = fp.write_back(model, fp.load(tmp_path / "program"))
    assert len(smaller.blocks) == 3
    assert_same(smaller, result, X)


def test_copies_and_pickles_of_a_replacement() -> None:
    model = Loop()
    smaller = fp.write_back(model, without(model, X, "blocks.1.mix*"))
    torch.testing.assert_close(copy.deepcopy(smaller)(X), smaller(X))
    exported = torch.export.export(smaller, (X,), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.testing.assert_close(exported.module()(X[:1].repeat(3, 1)), smaller(X[:1].repeat(3, 1)))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())

    def forward(self, x: Tensor) -> Any:
        return x + self.inner(x)


def test_what_training_left() -> None:
    model = Net(nn.Sequential(Plain(), Plain(), Plain())).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    shrinker = fp.training.Shrinker(model, optimizer, args=X)
    shrinker.run("insert-gates{scope=block}")
    for i in range(4):
        if i == 2:
            shrinker.run("set-gates{where=blocks.1* value=0} | delete-gated")
        optimizer.zero_grad()
        shrinker.module(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()
    smaller = fp.write_back(model, shrinker.program)
    assert len(smaller.blocks) == 2
    assert_same(smaller.eval(), fp.run(copy.deepcopy(shrinker.program).eval(), None, ""), X)
    assert model.training
    for_use = fp.run(shrinker.program.eval(), None, "fold-batchnorm | dead-code").program
    smaller = fp.write_back(model, for_use)
    assert len(smaller.blocks) == 2
    torch.testing.assert_close(smaller.eval()(X), for_use(X), rtol=1e-4, atol=1e-5)
