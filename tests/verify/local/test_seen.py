"""What values look like, others that look like them, and fewer places for them."""

from __future__ import annotations

from math import inf

import pytest
import torch

import fxprune as fp
from fxprune.verify.local.functions import lengths_to_try
from fxprune.verify.local.places import fewer_places
from fxprune.verify.local.seen import Seen


class Net(torch.nn.Module):
    """Values of each kind."""

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> list[torch.Tensor]:
        rows = x.shape[0]
        ones = torch.zeros_like(x)
        mask = torch.where(x > 0, x, -inf)
        return [x.relu(), ids + rows, ones, mask, x.view(rows * 2, 2)]


def test_random_values_look_like_those_seen() -> None:
    torch.manual_seed(0)
    x, ids = torch.randn(4, 4) * 3, torch.arange(4)
    program = fp.capture(Net(), (x, ids))
    lengths, more = lengths_to_try(program)
    assert (set(lengths.values()), set(more.values())) == ({2}, {3})
    seen = Seen(lengths)
    nodes = program.graph.output_node().all_input_nodes
    values = Net()(x[:2], ids[:2])
    for node, value in zip(nodes, values, strict=True):
        seen.note(node, value)
    drawn = [seen.draw(n, more, seen.shape(n, more)) for n in nodes]
    assert [tuple(v.shape) for v in drawn] == [(3, 4), (3,), (3, 4), (3, 4), (6, 2)]
    assert drawn[0].min() == 0 < drawn[0].max() <= values[0].max()
    assert drawn[1].tolist() == [2, 3, 2]
    assert drawn[2].unique().numel() == 12
    assert drawn[3].isinf().any()
    assert drawn[4].dtype == torch.float64
    assert drawn[4].std() > 1


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((2, 64, 56, 56), (2, 64, 5, 6)),
        ((3, 197, 192), (3, 6, 192)),
        ((2, 64), None),
        ((2, 3, 6, 6), None),
    ],
)
def test_places_become_fewer(given: tuple[int, ...], wanted: tuple[int, ...] | None) -> None:
    node = torch.fx.Graph().placeholder("x")
    found = [dict(shapes)[node] for shapes in fewer_places({node: given})]
    assert found[:1] == ([] if wanted is None else [wanted])


def test_lengths_keep_their_ratios() -> None:
    graph = torch.fx.Graph()
    nodes = [graph.placeholder(name) for name in "ab"]
    shapes = dict(zip(nodes, [(2, 8, 56, 56), (2, 16, 28, 28)], strict=True))
    first = next(iter(fewer_places(shapes)))
    assert [first[n] for n in nodes] == [(2, 8, 10, 12), (2, 16, 5, 6)]
