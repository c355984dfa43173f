"""Averages over removed positions, folded into the weight and the epsilon of the norm that takes them.

A norm that divides by the root of a mean square computes, of n kept positions out of m, mean_m = (n/m) mean_n; so
w x / sqrt(mean_m + eps) = (w sqrt(m/n)) x / sqrt(mean_n + eps m/n). Where a norm divides by a mean itself, as a
global response norm does, the weight takes m/n. Which of these a module computes is found out by running it alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn

from fxprune.algebra.label import IntArray
from fxprune.graph.program import Program, module_path
from fxprune.plan import Edit, Plan, Rescale
from fxprune.process.state import undisturbed
from fxprune.shrink.tensors import slice_tensors
from fxprune.verify.check import on_meta
from fxprune.write_back.changes import shape_of

Tensor = torch.Tensor
_AGREE = 1e-4  # norms compute in float32, whatever they are given
_LARGEST_EPSILON = 1e-2
_LARGEST_NORM = 10**7  # numbers in its parameters: what has more is more than a norm


@dataclass(frozen=True)
class Fold:
    """A factor that a parameter of a module takes over: of an average, or of the scale of attention.

    Attributes:
        path: of the module.
        tensor: the name of its parameter that is multiplied.
        factor: by what.
        offset: what its forward adds to the parameter before it multiplies by it: 0, or 1.
        numbers: the attributes that change -> their new values.
        part: an axis and positions of it, where only these are multiplied.
    """

    path: str
    tensor: str
    factor: float
    offset: float
    numbers: Mapping[str, float]
    part: tuple[int, IntArray] | None = None

    @property
    def name(self) -> str:
        """The name of the parameter in the model."""
        return f"{self.path}.{self.tensor}".removeprefix(".")

    def of(self, value: Tensor) -> Tensor:
        """The parameter with the factor in it."""
        if self.part is None:
            return (value + self.offset) * self.factor - self.offset
        axis, positions = self.part
        factors = torch.ones(value.shape[axis], dtype=value.dtype, device=value.device)
        factors[torch.from_numpy(positions).to(value.device)] = self.factor
        return value * factors.reshape([-1 if i == axis else 1 for i in range(value.dim())])


class Folds(tuple[Fold, ...]):
    """All that the modules of a model take over."""

    __slots__ = ()

    def of(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of a program's tensors as those of the model's tensors."""
        found = dict(values)
        for fold in self:
            if (old := found.get(fold.name)) is not None:
                new = fold.of(old)
                found.update({name: new for name, x in found.items() if x is old})
        return found

    def apply(self, model: nn.Module) -> dict[str, Tensor]:
        """Changes parameters and numbers of a model; returns the parameters as they were, by name."""
        before: dict[str, Tensor] = {}
        for fold in self:
            module = model.get_submodule(fold.path)
            weight = module.get_parameter(fold.tensor)
            before.setdefault(fold.name, weight.detach().clone())
            with torch.no_grad():
                weight.copy_(fold.of(weight))
            for name, value in fold.numbers.items():
                setattr(module, name, value)
        return before


def find_folds(model: nn.Module, plan: Plan, small: Program) -> tuple[Folds, list[Edit]]:
    """Finds modules that can take over averages that a plan rescales, and the edits that are then not needed.

    Args:
        model: at its old sizes.
        plan: for its program.
        small: the smaller program of the plan.
    """
    assert plan.program is not None, "it has a smaller program"
    nodes = {n.name: n for n in plan.program.nodes}
    at: dict[str, list[Rescale]] = {}
    for edit in plan.edits:
        if isinstance(edit, Rescale):
            at.setdefault(module_path(nodes[edit.node]), []).append(edit)
    found: list[Fold] = []
    folded: list[Edit] = []
    first = {id(m): p for p, m in model.named_modules()}
    known: dict[str, Fold | None] = {}
    for path, edits in at.items():
        module = model.get_submodule(path)
        same = first.get(id(module), path)
        ratios = {e.numerator / e.denominator for e in edits}
        if same not in known:
            shape = _input_shape(plan.program, small, path)
            alone = shape is not None and len(ratios) == 1
            known[same] = (
                _fold(module, path, plan, ratios.pop(), *shape) if alone and shape else None
            )
            if (new := known[same]) is not None:
                found.append(new)
        if known[same] is not None:
            folded += edits
    return Folds(found), folded


def _input_shape(program: Program, small: Program, path: str) -> tuple[tuple[int, ...], int] | None:
    """The sizes of what a module is given, short where they stay, and the axis that is cut."""
    after = {n.name: n for n in small.nodes}
    for node in program.nodes:
        if module_path(node) != path or node.op != "call_function":
            continue
        for source in node.all_input_nodes:
            inside = module_path(source) == path or source.op == "get_attr"
            if inside or source.name not in after:
                continue
            sizes = list(zip(shape_of(source), shape_of(after[source.name]), strict=False))
            cut = [i for i, (a, b) in enumerate(sizes) if a != b]
            if len(cut) == 1:
                shape = [a if i in cut else _short(a) for i, (a, _) in enumerate(sizes)]
                return tuple(shape), cut[0]
    return None


def _short(length: Any) -> int:
    return min(length, 4) if isinstance(length, int) else 2


def _fold(
    module: nn.Module, path: str, plan: Plan, ratio: float, shape: tuple[int, ...], axis: int
) -> Fold | None:
    """What a module takes over of its averages; None where nothing that is tried makes it agree."""
    before = f"{path}." if path else ""
    kept = {n.removeprefix(before): c for n, c in plan.kept.items() if n.startswith(before)}
    weights = [n for n, c in kept.items() if "." not in n and len(c) == 1]
    if not weights or sum(t.numel() for t in module.parameters()) > _LARGEST_NORM:
        return None
    positions = next(iter(kept[weights[0]].values()))
    with undisturbed(), torch.no_grad():
        old = _with_data(module)
        inputs = list(_inputs(shape, axis, positions))
        outputs = [y for x in inputs if (y := _run(old, x)) is not None and y.shape == shape]
        if len(outputs) < len(inputs):
            return None
        index = torch.from_numpy(positions)
        wanted = [y.index_select(axis, index) for y in outputs]
        new = copy.deepcopy(old)
        slice_tensors(new, kept)
        for fold in _ways(path, old, weights, ratio):
            trial = copy.deepcopy(new)
            Folds([Fold("", fold.tensor, fold.factor, fold.offset, fold.numbers)]).apply(trial)
            found = [_run(trial, x.index_select(axis, index)) for x in inputs]
            if all(_agree(a, b) for a, b in zip(found, wanted, strict=True)):
                return fold
    return None


def _ways(path: str, module: nn.Module, weights: Iterable[str], ratio: float) -> Iterator[Fold]:
    small = {n: x for n, x in vars(module).items() if type(x) is float and 0 < x < _LARGEST_EPSILON}
    numbers = {n: x / ratio for n, x in small.items()}
    for tensor, power, offset in product(weights, (0.5, 1.0), (0.0, 1.0)):
        for changed in (numbers, {}) if numbers else ({},):
            yield Fold(path, tensor, ratio**-power, offset, changed)


def _with_data(module: nn.Module) -> nn.Module:
    """A copy of a module on the CPU with random numbers in its tensors."""
    twin = copy.deepcopy(module).float()
    twin = twin.to_empty(device="cpu") if on_meta(module) else twin.cpu()
    for p in twin.parameters():
        p.requires_grad_(False)
        p.copy_(torch.rand(p.shape) + 0.5)
    return twin.eval()


def _inputs(shape: tuple[int, ...], axis: int, positions: IntArray) -> Iterator[Tensor]:
    """Random inputs without the removed positions: of the usual size, and so small that an epsilon matters."""
    kept = torch.zeros(shape[axis])
    kept[torch.from_numpy(positions)] = 1
    kept = kept.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 3e-3):
        yield torch.randn(shape, generator=generator) * kept * size


def _run(module: nn.Module, x: Tensor) -> Tensor | None:
    """What a module returns; None where it does not run alone on one tensor."""
    try:
        y = module(x)
    except Exception:
        return None
    return y if isinstance(y, Tensor) else None


def _agree(found: Tensor | None, wanted: Tensor) -> bool:
    if found is None or found.shape != wanted.shape:
        return False
    return bool((found - wanted).abs().max() <= _AGREE * wanted.abs().max())
