"""Tests of fxprune.torch_private, which say what each private name of torch is for."""

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.torch_private import WithoutData, pytree_specs


class Shapes(nn.Module):
    """Adds its input to its weight and notes the sizes and the number that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.seen: list[object] = []

    def forward(self, x: Tensor, size: int) -> Tensor:
        self.seen += [tuple(x.shape), x.stride(), size]
        return x + self.weight


def test_free_sizes_of_a_trace_stand_at_the_examples() -> None:
    """Inputs noted while torch.export runs have symbols for sizes, which mean nothing outside it."""
    batch = ({0: torch.export.Dim.AUTO},)
    graph = torch.export.export(nn.ReLU(), (torch.randn(3, 4),), dynamic_shapes=batch).graph
    (node,) = graph.find_nodes(op="placeholder")
    given, model = node.meta["val"], Shapes()
    assert not isinstance(given.shape[0], int)
    result = WithoutData(model, (given, given.shape[0]), {})()
    assert model.seen == [(3, 4), (4, 1), 3]
    assert all(type(n) is int for n in (*result.shape, model.seen[-1]))
    assert model.weight.equal(torch.ones(4))


def test_a_graph_knows_how_its_inputs_and_outputs_are_nested() -> None:
    """torch.fx keeps this with its code generator, and has no public way to read it."""
    exported = torch.export.export(Nested(), ({"a": torch.ones(2), "b": torch.ones(2)},))
    specs = pytree_specs(exported.module().graph)
    assert specs is not None
    assert specs[0].num_leaves == 2
    assert pytree.tree_unflatten([1, 2], specs[1]) == [1, (2,)]
    assert pytree_specs(torch.fx.symbolic_trace(nn.ReLU()).graph) is None


class Nested(nn.Module):
    def forward(self, x: dict[str, Tensor]) -> list[object]:
        return [x["a"] + 1, (x["b"] * 2,)]
