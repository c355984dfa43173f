"""Finds the activation functions of a program with the weights that feed them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import fx

from fxprune.graph.leaf import leaf_of
from fxprune.graph.program import Program
from fxprune.observe import OnFraction
from fxprune.structure.activations import Activation, find_activations
from fxprune.structure.paths import operator
from fxprune_passes.insert.places.weighted import WEIGHTED, weight_of
from fxprune_passes.methods.activations.between_layers import is_between_layers

# Bounded above as well: the side of 0 on which they are does not show whether they are linear.
_SATURATING = frozenset(("sigmoid", "hardsigmoid", "log_sigmoid", "tanh"))


@dataclass(frozen=True, eq=False)
class EntropyLayer:
    """An activation function, its observer, and the weights before it.

    Attributes:
        path: the path of the observer.
        activation: the activation function.
        observer: the observer of its input.
        weights: the names of the weights of the layers that feed it; possibly none.
    """

    path: str
    activation: Activation
    observer: OnFraction
    weights: tuple[str, ...]

    @property
    def between_layers(self) -> bool:
        """Whether two layers could be fused without the activation; see `is_between_layers`."""
        return is_between_layers(self.activation)


def find_entropy_layers(program: Program, ignore: Sequence[str] = ()) -> list[EntropyLayer]:
    """The activation functions with an on-fraction observer, in execution order.

    Sigmoid and tanh alone are left out. The weights before an activation are those of the nearest weighted
    layers on every path that leads back from it, through normalizations, sums, views and pools, up to another
    activation. Where a sum feeds it (a residual addition), all layers that feed the sum without an activation
    in between form its layer together: the last convolution of the branch and the projection on the shortcut.
    A weight that reaches several activations belongs to the first.

    Args:
        program: a program with observers.
        ignore: globs of the paths of observers or of their parent modules, or of the names of weights, to leave out.
    """
    activations = list(find_activations(program))
    ends = {one.node for one in activations}
    taken: set[int] = set()
    tensors = program.tensors()
    found: list[EntropyLayer] = []
    for one in activations:
        observer = leaf_of(program.module, one.source)
        alone = len(one.nodes) == 1 and one.name in _SATURATING
        if alone or not isinstance(observer, OnFraction) or not observer.on.dim():
            continue
        path = str(one.source.target)
        if _matches(ignore, path, path.rpartition(".")[0]):
            continue
        names = []
        for name in _feeding(one.source, ends):
            if id(tensors[name]) not in taken and not _matches(ignore, name):
                taken.add(id(tensors[name]))
                names.append(name)
        found.append(EntropyLayer(path, one, observer, tuple(names)))
    return found


def _matches(globs: Sequence[str], *names: str) -> bool:
    return any(fnmatchcase(name, glob) for name in names for glob in globs)


def _feeding(value: fx.Node, ends: set[fx.Node]) -> Iterator[str]:
    """The weights of the nearest weighted layers before a value, up to another activation."""
    seen: set[fx.Node] = set()
    todo = [value]
    while todo:
        node = todo.pop()
        if node in seen or node in ends:
            continue
        seen.add(node)
        if name := weight_of(node):
            yield name
        elif operator(node) not in WEIGHTED:
            todo += node.all_input_nodes
