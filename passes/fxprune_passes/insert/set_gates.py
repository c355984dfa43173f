"""Sets gates to a given value."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from fxprune.graph.gate import gate_nodes, gates
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Keeps, Rewrite


@dataclass(frozen=True)
class SetGates(Rewrite):
    """Sets the gates that match a path to a value. Changes the function.

    Args:
        where: glob of the paths of the gates, with or without the last component: `layer3.*`.
        value: the factor of the gates from now on.
        units: the positions of the unit gates to set; all of them by default.
    """

    name: ClassVar[str] = "set-gates"
    keeps: ClassVar[Keeps] = "nothing"
    where: str = "*"
    value: float = 0.0
    units: tuple[int, ...] = ()

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        places = gate_nodes(program)
        for path, gate in gates(program).items():
            names = (path, path.rpartition(".")[0])
            if not any(fnmatchcase(n, self.where) for n in names):
                continue
            if ctx.allow(places[path][0], f"set {path} to {self.value:g}", code="set"):
                theta = gate.theta.detach().clone()
                if self.units:
                    theta[list(self.units)] = self.value
                else:
                    theta.fill_(self.value)
                editor.set_tensor(f"{path}.theta", theta)
                editor.set_tensor(f"{path}.sample", (theta >= 0.5).to(theta.dtype))
        return editor.finish()
