"""Removes observers from a graph."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from fxprune.graph.program import Program
from fxprune.observe import observer_nodes, observers
from fxprune.pipeline import Context, Rewrite


@dataclass(frozen=True)
class RemoveObservers(Rewrite):
    """Removes observers together with the statistics they have gathered. Exact.

    Args:
        where: glob of the paths of the observers, with or without the last component.
        stat: glob of the statistics whose observers are removed; all by default.
    """

    name: ClassVar[str] = "remove-observers"
    where: str = "*"
    stat: str = "*"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        found = observers(program)
        for path, places in observer_nodes(program).items():
            names = (path, path.rpartition(".")[0])
            chosen = any(fnmatchcase(n, self.where) for n in names)
            if not chosen or not fnmatchcase(found[path].stat, self.stat):
                continue
            if ctx.allow(places[0], f"removed {path}, {found[path].extra_repr()}", code="removed"):
                for place in places:
                    node = editor.node(place)
                    editor.replace(node, node.all_input_nodes[0])
        return editor.finish()
