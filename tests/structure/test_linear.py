"""Linear-only regions: where they end and why, and that they are affine in numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, fx, nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.structure.linear import Region, Regions, find_linear_regions

IMAGE = (torch.randn(2, 8, 8, 8),)
TOKENS = (torch.randn(2, 5, 8),)


class Net(nn.Module):
    """A function of inputs and of two layers a, b."""

    def __init__(self, run: Callable[..., Any], a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.run, self.a, self.b = run, a, b

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def conv() -> nn.Module:
    return nn.Conv2d(8, 8, 3, padding=1)


def linear() -> nn.Module:
    return nn.Linear(8, 8)


def regions_of(model: nn.Module, *inputs: Tensor, training: bool = False) -> Regions:
    return find_linear_regions(fp.capture(model.train(training), inputs))


# What stands between two layers, if it is affine.
AFFINE: dict[str, tuple[Callable[[Any, Tensor], Any], bool]] = {
    "nothing": (lambda n, x: x, True),
    "relu": (lambda n, x: x.relu(), False),
    "average pooling": (lambda n, x: F.avg_pool2d(x, 2), True),
    "adaptive pooling": (lambda n, x: F.adaptive_avg_pool2d(x, 2), True),
    "max pooling": (lambda n, x: F.max_pool2d(x, 2), False),
    "mean over pixels": (lambda n, x: x.mean((2, 3), keepdim=True), True),
    "constants": (lambda n, x: 3 - (x * 0.5 + 1) / 2, True),
    "parameter": (lambda n, x: x * n.a.bias[:, None, None] - n.b.weight[0, :, :1, :1], True),
    "reshapes": (lambda n, x: x.flatten(2).transpose(1, 2).mT.reshape(2, 8, 8, 8), True),
    "slices, cat": (lambda n, x: torch.cat((x[:, 4:], x[:, :4]), 1), True),
    "chunks": (lambda n, x: sum(torch.chunk(x, 2, 1)).repeat(1, 2, 1, 1), True),  # type: ignore[union-attr]
    "padding": (lambda n, x: F.pad(x, (1, 1, 1, 1)), True),
    "sum with itself": (lambda n, x: x + x.flip(2), True),
    "upsampling": (lambda n, x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), True),
    "product": (lambda n, x: x * x.mean((2, 3), keepdim=True), False),
    "quotient": (lambda n, x: 1 / x, False),
    "floor": (lambda n, x: torch.div(x, 2, rounding_mode="floor"), False),
    "softmax": (lambda n, x: x.softmax(1), False),
    "constant mask": (lambda n, x: x.masked_fill(torch.ones(8, 8).tril() == 0, 0.0), True),
    "own mask": (lambda n, x: x.masked_fill(x > 0, 0.0), False),
    "own index": (lambda n, x: x.index_select(2, (x > 0).sum((0, 1, 3)) % 8), False),
    "noise": (lambda n, x: x * torch.rand(8, 8), False),
    "layer norm": (lambda n, x: F.layer_norm(x, (8, 8)), False),
    "own statistics": (lambda n, x: F.batch_norm(x, None, None, training=True), False),
    "own matrix": (lambda n, x: x @ x.mT, False),
    "constant matrix": (lambda n, x: torch.einsum("bchw,cd->bdhw", x, n.a.weight[..., 0, 0]), True),
}


@pytest.mark.parametrize("name", AFFINE)
def test_between_two_layers(name: str) -> None:
    between, affine = AFFINE[name]
    program = fp.capture(Net(lambda n, x: n.b(between(n, n.a(x))), conv(), conv()).eval(), IMAGE)
    regions = find_linear_regions(program)
    assert any(r.fusable for r in regions) is affine, regions
    check_affine(program, regions)


REASONS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "relu": (lambda n, x: n.a(x).relu(), "aten.relu.default is not affine"),
    "product": (lambda n, x: n.a(x) * x, "it multiplies two values that depend on the input"),
    "matrices": (lambda n, x: n.a(x) @ x, "it multiplies two values that depend on the input"),
    "quotient": (lambda n, x: x / n.a(x), "it divides by a value that depends on the input"),
    "floor": (lambda n, x: torch.div(n.a(x), 2, rounding_mode="floor"), "the quotient is rounded"),
    "noise": (lambda n, x: n.a(x) * torch.rand(8, 8), "one factor is drawn at random"),
    "mask": (
        lambda n, x: torch.where(x > 0, n.a(x), 0.0),
        "the mask of aten.where.ScalarOther depends on the input",
    ),
    "index": (
        lambda n, x: n.a(x).gather(1, x.argsort(1)),
        "aten.gather.default takes its positions from values that depend on the input",
    ),
    "integers": (
        lambda n, x: n.a(x).long(),
        "aten.to.dtype does not return floating-point numbers",
    ),
    "output": (lambda n, x: n.a(x), "the network's output"),
    "another reader": (
        lambda n, x: (n.b(h := n.a(x)), h.relu()),
        "a node outside reads it too: relu reads conv2d",
    ),
    "instance norm": (
        lambda n, x: F.instance_norm(n.a(x)),
        "instance_norm uses the statistics of its input",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_reason(name: str) -> None:
    run, reason = REASONS[name]
    first = regions_of(Net(run, conv(), conv()), *IMAGE)[0]
    assert reason in [why for _, why in first.ends]
    assert first.ends[0] == (first.inputs[0], "an input of the network")


def written(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y[:, :4] = y[:, :4].relu()
    return net.b(y)


def test_memory_that_is_written_to_ends_a_run() -> None:
    for region in regions_of(Net(written, conv(), conv()), *IMAGE):
        assert not region.fusable


@pytest.mark.parametrize("training", [False, True])
def test_modes(training: bool) -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(8), conv(), nn.Dropout(0.2), conv())
    regions = regions_of(model, *IMAGE, training=training)
    assert [len(r.layers) for r in regions] == ([1, 1, 1] if training else [3])
    if training:
        ends = [r.ends[-1][1] for r in regions]
        assert ends == [
            "batch_norm in train mode uses the batch's statistics",
            "dropout in train mode is random",
            "the network's output",
        ]


def test_a_region_says_all_there_is_to_say() -> None:
    model = nn.Sequential(linear(), linear(), nn.GELU(), linear())
    first, last = regions_of(model, *TOKENS)
    assert [n.name for n in first.nodes] == [n.name for n in first.layers] == ["linear", "linear_1"]
    assert first.output is first.nodes[-1]
    assert first.inputs[0].op == "placeholder"
    assert [why for _, why in first.ends] == [
        "an input of the network",
        "aten.gelu.default is not affine",
    ]
    assert (first.fusable, last.fusable) == (True, False)


def test_branches_that_are_summed_are_one_region() -> None:
    (region,) = regions_of(Net(lambda n, x: n.a(x) + n.b(x) + x, conv(), conv()), *IMAGE)
    assert len(region.layers) == 2
    assert region.inputs[0].op == "placeholder"


def test_runs_without_a_layer_are_not_listed() -> None:
    regions = regions_of(Net(lambda n, x: n.a((x * 2).relu()), conv(), conv()), *IMAGE)
    assert [len(r.layers) for r in regions] == [1]


def test_prints_a_table() -> None:
    regions = regions_of(nn.Sequential(conv(), conv(), nn.ReLU(), conv()), *IMAGE)
    text = str(regions)
    assert text.startswith("Sequential: 2 linear-only regions, 1 with layers to fuse\n")
    assert "0, 1" in text
    assert "aten.relu.default is not affine" in text
    assert regions[:1] == (regions[0],)


def check_affine(program: Program, regions: Regions) -> None:
    """Of the middle between two points every region makes the middle of what it makes of them."""
    for region in regions:
        one, two = ([_like(n, i) for n in region.inputs] for i in (0, 1))
        middle = [(a + b) / 2 for a, b in zip(one, two, strict=True)]
        module = alone(program, region)
        expected = (module(*one) + module(*two)) / 2
        torch.testing.assert_close(module(*middle), expected, rtol=1e-4, atol=1e-4)


def alone(program: Program, region: Region) -> fx.GraphModule:
    """The region as a network of its own, with the constants it reads."""
    graph, twin = fx.Graph(), dict[fx.Node, fx.Node]()
    for source in region.inputs:
        twin[source] = graph.placeholder(source.name)
    needed = constants(region) | {*region.nodes}
    for node in program.nodes:
        if node in needed:
            twin[node] = graph.node_copy(node, lambda n: twin[n])
    graph.output(twin[region.output])
    return fx.GraphModule(program.module, graph)


def constants(region: Region) -> set[fx.Node]:
    found: set[fx.Node] = set()
    todo = [s for n in region.nodes for s in n.all_input_nodes]
    known = {*region.nodes, *region.inputs}
    while todo:
        node = todo.pop()
        if node not in found and node not in known:
            assert node.op != "placeholder" or not node.meta["val"].is_floating_point()
            found.add(node)
            todo += node.all_input_nodes
    return found


def _like(node: fx.Node, seed: int) -> Tensor:
    """Values of the node's shape, for a batch of 2; no size may depend on a batch."""
    shape = [s if isinstance(s, int) else 2 for s in node.meta["val"].shape]
    generator = torch.Generator().manual_seed(seed + len(node.name))
    return torch.randn(shape, generator=generator)


def test_resnet18() -> None:
    program = fp.capture(tv.resnet18().eval(), torch.randn(2, 3, 64, 64))
    regions = find_linear_regions(program)
    assert sum(len(r.layers) for r in regions) == 21
    assert [len(r.layers) for r in regions if r.fusable] == [2, 2, 2]  # beside a projection
    check_affine(program, regions)


def test_linear_bottlenecks() -> None:
    """The projection of a block and the expansion of the next one, where nothing is added between."""
    program = fp.capture(tv.mobilenet_v2().eval(), torch.randn(2, 3, 32, 32))
    regions = find_linear_regions(program)
    fusable = [r for r in regions if r.fusable]
    assert len(fusable) == 7
    check_affine(program, Regions(regions.name, tuple(fusable)))
