"""What can be deleted at once: a residual branch, or all branches of one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import fx

from fxprune.graph.program import Program, module_path
from fxprune.structure.blocks import Block
from fxprune.structure.names import class_of

Unit = Literal["layer", "branch"]


@dataclass(frozen=True, eq=False)
class Layer:
    """Residual blocks that are deleted together, in the order of the graph.

    Attributes:
        path: of the element of a list of modules to which they belong; where there is none, of the only block.
        blocks: one or more, none inside another.
    """

    path: str
    blocks: tuple[Block, ...]

    @property
    def entry(self) -> fx.Node:
        """What the layer is given."""
        return self.blocks[0].entry

    @property
    def end(self) -> fx.Node:
        """What the layer makes of it: the last addition."""
        return self.blocks[-1].add

    @property
    def branches(self) -> tuple[fx.Node, ...]:
        """The operands of the additions without which nothing is left but shortcuts."""
        return tuple(b.branch for b in self.blocks)

    @property
    def nodes(self) -> frozenset[fx.Node]:
        """The nodes of all branches."""
        return frozenset().union(*(b.nodes for b in self.blocks))

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters that go with it."""
        return tuple(dict.fromkeys(name for b in self.blocks for name in b.parameters))

    @property
    def size(self) -> int:
        """The number of elements of these."""
        return sum(b.size for b in self.blocks)

    @property
    def macs(self) -> int:
        """The multiply-accumulates that go with it."""
        return sum(b.macs for b in self.blocks)


def find_layers(program: Program, blocks: Sequence[Block], unit: Unit) -> list[Layer]:
    """The layers of a network, or its branches one by one, in the order of the graph.

    A layer has the blocks whose additions are made in one element of a `ModuleList` or `Sequential`, the innermost one
    around them: attention and feed-forward of a transformer. A block in no such list is a layer by itself.

    Args:
        program: the network.
        blocks: its residual blocks; those inside others are left out, as they go with these.
        unit: what is deleted at once.
    """
    place = {node: i for i, node in enumerate(program.nodes)}
    outer = sorted((b for b in blocks if b.parent is None), key=lambda b: place[b.add])
    if unit == "branch":
        return [Layer(b.path, (b,)) for b in outer]
    classes = class_of(program.nodes)
    together: dict[str, list[Block]] = {}
    for block in outer:
        path = _element(module_path(block.add), classes) or block.path
        together.setdefault(path, []).append(block)
    return [Layer(path, tuple(found)) for path, found in together.items()]


def _element(path: str, classes: Mapping[str, str]) -> str:
    """The path of the innermost module around a place that is an element of a list; "" where there is none.

    Such a one has a number for a name, or stands in a `Sequential`. A `ModuleList` is never called: its class is not
    known here.
    """
    while path:
        parent, _, name = path.rpartition(".")
        if name.isdecimal() or classes.get(parent) == "Sequential":
            return path
        path = parent
    return ""
