"""Criteria computed from weights and the activations that meet them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from fxprune.graph.evaluate import Evaluator
from fxprune.graph.operands import get_argument, is_operator
from fxprune.importance.table import Evidence, criterion

Tensor = torch.Tensor


@criterion("wanda", needs="inputs")
def wanda(evidence: Evidence, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
    """|w| times the root mean square of the activation that it meets (Wanda: Sun et al., arXiv 2306.11695, eq. 1).

    The paper scores single weights; here a unit has the sum over the weights that it cuts, of the layers that make
    it and of those that read it. Tensors that are multiplied with no activation, such as biases, norms and
    embeddings, do not contribute. Without data the program's example inputs are used.
    """
    if "met" not in evidence.gathered:
        evidence.gathered["met"] = _Met(evidence).gather()
    met = evidence.gathered["met"].get(name)
    return None if met is None else tensor.abs() * met.to(tensor.device)


class _Met(Evaluator):
    """Gathers the root mean square of what each weight is multiplied with, in a shape that broadcasts to the weight."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__(evidence.program, torch.float32)
        self._evidence = evidence
        self._found: dict[str, list[Tensor]] = {}

    def gather(self) -> Mapping[str, Tensor]:
        for args, kwargs in self._evidence.inputs():
            self.evaluate(args, kwargs)
        return {n: torch.stack(found).mean(0).sqrt() for n, found in self._found.items()}

    def run_node(self, n: fx.Node) -> Any:
        reader = _READERS.get(n.target._schema.name) if is_operator(n) else None  # type: ignore[union-attr]
        if reader is not None:
            names, squares = reader
            x, weight = (get_argument(n, name) for name in names)
            if isinstance(x, fx.Node) and isinstance(weight, fx.Node) and weight.op == "get_attr":
                met = squares(n, self.env[x].double().square(), self.env[weight])
                self._found.setdefault(str(weight.target), []).append(met.float())
        return super().run_node(n)


def _of_linear(node: fx.Node, x: Tensor, weight: Tensor) -> Tensor:
    """Mean squares `[1, in]` for a weight `[out, in]`."""
    return x.flatten(0, -2).mean(0)[None]


def _of_product(node: fx.Node, x: Tensor, weight: Tensor) -> Tensor:
    """Mean squares `[in, 1]` for a weight `[in, out]`."""
    return x.flatten(0, -2).mean(0).reshape(-1, *[1] * (weight.dim() - 1))


def _of_convolution(node: fx.Node, x: Tensor, weight: Tensor) -> Tensor:
    """Mean squares `[out, in / groups, 1, ...]`."""
    spatial = weight.dim() - 2
    channels = _channels(x, spatial)
    by_group = channels.reshape(int(get_argument(node, "groups")), -1)
    met = by_group.repeat_interleave(weight.shape[0] // len(by_group), 0)
    return met.reshape(*met.shape, *[1] * spatial)


def _of_transposed(node: fx.Node, x: Tensor, weight: Tensor) -> Tensor:
    """Mean squares `[in, 1, ...]`."""
    return _channels(x, weight.dim() - 2).reshape(-1, *[1] * (weight.dim() - 1))


def _channels(x: Tensor, spatial: int) -> Tensor:
    """The means of channels, with or without a batch axis before them."""
    axis = x.dim() - spatial - 1
    return x.mean([d for d in range(x.dim()) if d != axis])


Reader = tuple[tuple[str, str], Callable[[fx.Node, Tensor, Tensor], Tensor]]
_READERS: dict[str, Reader] = {
    "aten::linear": (("input", "weight"), _of_linear),
    "aten::addmm": (("mat1", "mat2"), _of_product),
    "aten::mm": (("self", "mat2"), _of_product),
    "aten::matmul": (("self", "other"), _of_product),
    **{f"aten::conv{n}d": (("input", "weight"), _of_convolution) for n in (1, 2, 3)},
    **{f"aten::conv_transpose{n}d": (("input", "weight"), _of_transposed) for n in (1, 2, 3)},
}
