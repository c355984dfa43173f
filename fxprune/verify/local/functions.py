"""Compares two programs of one function region by region."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import fx

from fxprune.graph.evaluate import Evaluator, Provide
from fxprune.graph.free_axes import Conditions
from fxprune.graph.program import Program
from fxprune.verify.check import TOLERANCE, Check
from fxprune.verify.inputs import lengths_of
from fxprune.verify.local.matching import Matching
from fxprune.verify.local.obstacles import Obstacles
from fxprune.verify.local.proof import CannotCompareError, Proof, Sides
from fxprune.verify.local.regions import Cutter, Region
from fxprune.verify.local.seen import Seen, shape_at
from fxprune.verify.noise import noise_of, outside_leaves

Tensor = torch.Tensor


class LocalFunctions:
    """Holds what a rewrite changed against what was there before, region by region.

    Args:
        before: the program as it was.
        after: the program that should compute the same.
        seen: what the values of `before` look like.

    Raises:
        CannotCompareError: the two cannot be cut.
    """

    def __init__(self, before: Program, after: Program, seen: Seen) -> None:
        self._before, self._after, self._seen = before, after, seen
        self._matching = Matching(before, after)
        self._obstacles = Obstacles(before, after)
        if why := self._matching.objection or self._obstacles.of_all():
            raise CannotCompareError(why)
        self._cutter = Cutter(before, after, self._twin)
        self._outputs = before.graph.output_node(), after.graph.output_node()
        self._lengths = lengths_to_try(before)
        self._held, self._held_after = outside_leaves(before), outside_leaves(after)
        self._known = {id(t) for t in before.tensors().values()}
        self._regions = self._proof({}, self._lengths[0]).regions(self._outputs)

    def noise(self, seed: int) -> dict[str, Tensor]:
        """Noise for the tensors of one repeated value that the regions of the program before read, by name."""
        read = self.read()
        return noise_of({name: t for name, t in self._held.items() if name in read}, seed)

    def read(self) -> set[str]:
        """All names of the tensors that the regions of the program before read."""
        names = {str(n.target) for r in self._regions for n in r.before}
        read = {id(self._held[name]) for name in names if name in self._held}
        return {name for name, tensor in self._held.items() if id(tensor) in read}

    def rounds(self) -> bool:
        """Whether a region of the program after reads numbers that were worked out anew in less than float64."""
        return any(t.dtype != torch.float64 for r in self._regions for t in self._new(r))

    def is_new(self) -> bool:
        """Whether a region of the program after reads numbers that the program before has not."""
        return any(map(self._new, self._regions))

    def check(self, noise: Mapping[str, Tensor], *, plain: bool = False) -> Check:
        """Compares the regions, at another number of rows than the example's.

        Args:
            noise: to add to tensors of the program before, by name; the same is added to them in the program after.
            plain: whether to take few rows only, where another check tries another number of them.

        Raises:
            CannotCompareError: they differ, or cannot be compared.
        """
        lengths = self._lengths[0 if plain else -1]
        rows = rows_at(self._before, lengths)
        proof = self._proof(noise, lengths)
        return proof.check(self._outputs, against="the program before", batches=rows)

    def _proof(self, noise: Mapping[str, Tensor], lengths: Mapping[str, int]) -> Proof:
        theirs = {name: noise[o] for name, o in self._origins(noise)} if noise else {}
        sides = Sides(
            Evaluator(self._before, torch.float64, _adding(noise)),
            Evaluator(self._after, torch.float64, _adding(theirs)),
            lambda pair: self._matching.fed(*pair) if self._matching.agrees(*pair) else None,
            lambda _, value: value,
            self._tolerance,
        )
        return Proof(sides, self._cutter, self._obstacles, self._seen, lengths)

    def _twin(self, node: fx.Node) -> fx.Node | None:
        known = node.op not in ("get_attr", "output") and self._seen.knows(node)
        return self._matching.twins.get(node) if known else None

    def _tolerance(self, region: Region) -> float:
        types = {torch.float64, *(t.dtype for t in self._new(region))}
        return max(TOLERANCE[t] for t in types if t in TOLERANCE)

    def _new(self, region: Region) -> list[Tensor]:
        """The floating-point tensors of a region that only the program after holds."""
        names = (str(n.target) for n in region.after if n.op == "get_attr")
        read = {name: self._held_after[name] for name in names if name in self._held_after}
        return [
            tensor
            for name, tensor in read.items()
            if tensor.is_floating_point()
            and id(tensor) not in self._known
            and not (name in self._held and self._matching.same_tensor(name, name))
        ]

    def _origins(self, noise: Iterable[str]) -> Iterator[tuple[str, str]]:
        """The tensors of the program after that are ones of the program before, with a name that these have there."""
        names = {id(self._held[name]): name for name in noise}
        for name, tensor in self._held_after.items():
            if id(tensor) in names:
                yield name, names[id(tensor)]
            elif name in names.values() and self._matching.same_tensor(name, name):
                yield name, name


def _adding(noise: Mapping[str, Tensor]) -> Provide | None:
    if not noise:
        return None
    return lambda name, tensor: tensor + noise[name].to(tensor) if name in noise else tensor


def lengths_to_try(program: Program) -> list[Mapping[str, int]]:
    """Lengths of all free sizes, by name: few rows, and another number of rows."""
    example, tried = Conditions(program.graph).example, lengths_of(program, few=True)
    second = [] if tried.second is None else [{**example, **tried.second}]
    return [{**example, **tried.first}, *second]


def rows_at(program: Program, lengths: Mapping[str, int]) -> tuple[int, ...]:
    """The number of rows of the first input that has any, at some lengths of the free sizes; none where none has."""
    for node in program.graph.find_nodes(op="placeholder"):
        if shape := shape_at(node.meta.get("val"), lengths):
            return shape[:1]
    return ()
