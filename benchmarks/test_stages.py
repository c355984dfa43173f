"""Capture, and what comes after it: each stage of one network in units of another."""

from __future__ import annotations

from statistics import median

import pytest
import torch
from torch.utils import _pytree as pytree

import fxprune as fp
from benchmarks.conftest import Compare
from benchmarks.networks import Example, classifiers
from benchmarks.stages import STAGES, Laps, prune
from benchmarks.zoo_passes import EXACT

ROUNDS = 3
NETWORKS = {n.name: n for n in classifiers()}
SOME = [
    *(f"torchvision:{n}" for n in "alexnet convnext_tiny densenet121 efficientnet_b0".split()),
    *(f"torchvision:{n}" for n in "mobilenet_v3_small regnet_y_400mf resnet50 swin_t".split()),
    *(f"torchvision:{n}" for n in "vgg11_bn vit_b_16".split()),
    *(f"transformers:{n}" for n in "gpt2 llama mamba mixtral t5".split()),
]


@pytest.fixture(scope="module")
def example(request: pytest.FixtureRequest) -> Example:
    """A network and its inputs: the same for all tests of it, which run one after another."""
    torch.manual_seed(0)
    return NETWORKS[request.param].build()


def capture(example: Example) -> fp.Program:
    model, args, kwargs = example
    return fp.capture(model, args, kwargs)


def export(example: Example) -> torch.export.ExportedProgram:
    """What most tools take, and capture where it cannot record: torch.export with a free batch."""
    model, args, kwargs = example
    shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for x in pytree.tree_leaves((args, kwargs)):
        if isinstance(x, torch.Tensor) and x.ndim:
            shapes[x] = {0: torch.export.Dim.AUTO}
    return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


@pytest.mark.benchmark(group="Capture")
@pytest.mark.parametrize("example", SOME, indirect=True)
def test_capture(example: Example, compare: Compare) -> None:
    compare(lambda: export(example), lambda _: capture(example), ROUNDS)


@pytest.mark.benchmark(group="After capture: solve, groups, plan and shrink")
@pytest.mark.parametrize("example", NETWORKS, indirect=True)
def test_after_capture(example: Example, compare: Compare) -> None:
    rounds, nodes = list[Laps](), list[int]()

    def work(program: fp.Program) -> None:
        nodes.append(len(program.graph.nodes))
        rounds.append(Laps())
        prune(program, rounds[-1])

    row = compare(lambda: capture(example), work, ROUNDS, at_most=0.2)
    row["nodes"] = nodes[0]
    for stage in STAGES:
        row[f"{stage} ms"] = 1e3 * median(laps[stage] for laps in rounds[1:])


@pytest.mark.benchmark(group="Verification")
@pytest.mark.parametrize("example", SOME, indirect=True)
def test_verification(example: Example, compare: Compare) -> None:
    program = capture(example)
    plan, small = prune(program, Laps())
    compare(lambda: capture(example), lambda _: fp.verify(program, plan, small), ROUNDS)


@pytest.mark.benchmark(group="Exact rewrites")
@pytest.mark.parametrize("example", SOME, indirect=True)
def test_rewrites(example: Example, compare: Compare) -> None:
    compare(
        lambda: capture(example),
        lambda program: fp.run(program, None, EXACT, verify=False),
        ROUNDS,
    )
