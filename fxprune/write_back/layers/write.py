"""Writes deleted layers back to the model's own class."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import islice, product
from operator import or_
from typing import Generic, TypeVar

import torch
from torch import nn

from fxprune.errors import FxpruneError, PlanError
from fxprune.graph.program import Program, describe, named_tensors
from fxprune.remark import Remark
from fxprune.shrink.tensors import slice_tensors
from fxprune.verify import check_numbers
from fxprune.write_back.attempt import Trial
from fxprune.write_back.further_tests import decodes
from fxprune.write_back.layers.dead import Dead, Work
from fxprune.write_back.layers.forms import Call, calls_of
from fxprune.write_back.layers.numbers import LayerNumbers
from fxprune.write_back.layers.options import Edits, options_for
from fxprune.write_back.layers.take_out import shorten, shorter_lists, tensor_names
from fxprune.write_back.layers.zeros import Silent, with_zeros
from fxprune.write_back.rebuild import Builder
from fxprune.write_back.twin import all_or_nothing, twin_of

Tensor = torch.Tensor
M = TypeVar("M", bound=nn.Module)
M_co = TypeVar("M_co", bound=nn.Module, covariant=True)
_MOST = 24  # ways that are tried for one part
_DO = "use the program of the result, or delete whole elements of a list of layers"


@dataclass(frozen=True, eq=False)
class Part:
    """Dead modules that belong together.

    Attributes:
        dead: the modules.
        zeros: the names of the nodes whose zeros leave them nothing to do.
        options: what may be done to them, the best first.
    """

    dead: tuple[Dead, ...]
    zeros: tuple[str, ...]
    options: tuple[Edits, ...]

    @property
    def where(self) -> str:
        """The paths of its modules."""
        return ", ".join(d.path for d in self.dead)


@dataclass(frozen=True, eq=False)
class WithoutLayers(Generic[M_co]):
    """A model without layers.

    Attributes:
        model: the model.
        names: the name of each of its tensors -> its name before.
        remarks: on what its config cannot say, and on numbers that nothing decided.
    """

    model: M_co
    names: Mapping[str, str]
    remarks: tuple[Remark, ...]


class LayerWriter(Generic[M]):
    """Takes layers out of one model.

    Args:
        model: the model that was captured; it stays as it is.
        original: what was captured.
        zeros: the names of nodes whose values are 0 since layers were deleted.
    """

    def __init__(self, model: M, original: Program, zeros: Sequence[str]) -> None:
        self._model, self._original, self._zeros = model, original, zeros
        self._silent = with_zeros(original, zeros)
        self._work = Work(original, model)
        self._builder = Builder.of(model)
        self._decoded = decodes(model, original) is True

    def write(self, *, inplace: bool) -> WithoutLayers[M]:
        """The model without the layers: the model itself, or a copy with tensors of its own.

        Raises:
            PlanError: a layer cannot leave the class.
        """
        parts = self._parts()
        target = twin_of(self._model)
        chosen = [part.options[0] for part in parts]
        try:
            found = self._edited(target, chosen, self._silent)
        except FxpruneError:
            if len(parts) == 1 and len(parts[0].options) == 1:
                raise
            target = twin_of(self._model)
            chosen = [self._first_that_fits(part) for part in parts]
            found = self._edited(target, chosen, self._silent)
        if not inplace:
            slice_tensors(target, {})
            return found
        with all_or_nothing(self._model):
            return self._edited(self._model, chosen, self._silent)

    def _first_that_fits(self, part: Part) -> Edits:
        """What may be done to a part, with all others in place."""
        silent, why = with_zeros(self._original, part.zeros), FxpruneError("")
        for option in part.options:
            try:
                self._edited(twin_of(self._model), [option], silent)
            except FxpruneError as error:
                why = error
            else:
                return option
        raise PlanError(
            f"{type(self._model).__name__} cannot be written without a deleted layer",
            where=part.where,
            why=": ".join(filter(None, (why.what, why.why))),
            do=_DO,
        ) from why

    def _edited(self, target: M, edits: Iterable[Edits], silent: Silent) -> WithoutLayers[M]:
        """Changes the modules of a model and the numbers that tell of them, and holds it against a program.

        Raises:
            FxpruneError: the model computes something else, or cannot be changed so.
        """
        edit = reduce(or_, edits, Edits())
        paths = {id(m): p for p, m in target.named_modules()}
        before = named_tensors(target)
        lists = shorter_lists(target, edit.leave)
        numbers = LayerNumbers(target, lists, self._builder, tuple(edit.put), decoded=self._decoded)
        put = {path: copy.deepcopy(module) for path, module in edit.put.items()}
        for path, module in put.items():
            target.set_submodule(path, module)
        shorten(target, lists)
        names = tensor_names(target, paths)
        trial = Trial(target, silent.program, partial(_check, silent.program, names, before))
        return WithoutLayers(target, names, tuple(numbers.settle(trial)))

    def _parts(self) -> list[Part]:
        """The dead modules, those together that the same zeros leave without work.

        Raises:
            PlanError: a module that was deleted has other work, or nothing can be done to a dead one.
        """
        dead = self._work.dead(self._silent)
        calls = calls_of(self._model, self._original, self._paths(dead))
        joined: list[tuple[set[Dead], set[str]]] = []
        for name in self._zeros:
            gone = with_zeros(self._original, [name]).live
            mine = {d for d in dead if not self._work.weighted(d.path) <= gone}
            if not mine:
                raise self._shared(name)
            zeros = {name}
            for other in [o for o in joined if o[0] & mine]:
                joined.remove(other)
                mine, zeros = mine | other[0], zeros | other[1]
            joined.append((mine, zeros))
        return [self._part(d, z, calls) for d, z in joined]

    def _part(self, dead: set[Dead], zeros: set[str], calls: Mapping[str, Call]) -> Part:
        several = tuple(d for d in self._work.dead(self._silent) if d in dead)
        ways = [list(options_for(d, self._work, self._silent, calls)) for d in several]
        options = tuple(reduce(or_, way, Edits()) for way in islice(product(*ways), _MOST))
        part = Part(several, tuple(sorted(zeros)), options)
        if not options:
            raise PlanError(
                f"{type(self._model).__name__} cannot be written without a deleted layer",
                where=part.where,
                why="it is no element of a list, and the form of what it returns is not known",
                do=_DO,
            )
        return part

    def _paths(self, dead: Iterable[Dead]) -> list[str]:
        """The paths of dead modules and of all parts of them that are dead."""
        inner = (p for d in dead for p in self._paths(self._work.within(d.path, self._silent)))
        return [*(d.path for d in dead), *inner]

    def _shared(self, name: str) -> PlanError:
        node = next(n for n in self._original.nodes if n.name == name)
        return PlanError(
            f"{type(self._model).__name__} cannot be written without a deleted layer",
            where=describe(node),
            why="the modules that compute it have other work too: they are called more than once, or all else "
            "in them stays",
            do=_DO,
        )


def _check(
    program: Program, names: Mapping[str, str], before: Mapping[str, Tensor], model: nn.Module
) -> None:
    def written(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {new: values[old] for new, old in names.items()}

    check_numbers(model, program, tensors=before, written=written)
