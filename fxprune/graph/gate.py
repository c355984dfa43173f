"""Gates: trainable multipliers on a whole branch or on each unit of an axis."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import fx, nn

from fxprune.graph.leaf import Leaf

Kind = Literal["hard", "soft", "bernoulli"]
Estimator = Literal["straight-through", "score"]
# A dot product of shorter numbers would be summed up in them.
_EXACT = (torch.float32, torch.float64)
# Products that are summed up at once.
_PIECE = 1 << 17


class Gate(Leaf):
    """Multiplies a value by gates: one gate for the whole value, or one for each position of an axis.

    The multiplier follows from the trainable parameter theta, depending on the kind of gate:

    - `hard`: 1 where theta >= 0.5, else 0.
    - `soft`: theta itself.
    - `bernoulli`: in train mode a sample of Bernoulli(theta), the same for the whole batch and for
      every place of the gate; in eval mode its expectation, theta.

    With `estimator="straight-through"`, gradients pass through the rounding or sampling to theta
    unchanged (Bengio et al., arXiv 1308.3432). With `estimator="score"` they do not reach theta;
    `log_probability()` then serves a score-function estimator (REINFORCE, Williams 1992).

    Args:
        size: the length of the axis; None for one gate on the whole value.
        kind: `hard`, `soft` or `bernoulli`, see above.
        estimator: `straight-through` or `score`, see above.
        like: a tensor whose dtype and device theta gets.

    Attributes:
        theta: the parameter, `[size]` or `[]`, initially all ones.
        sample: a buffer of the same shape, which holds the last sample.
        draws: whether each forward pass in train mode draws a new sample. If false, call `draw` or
            set `sample` yourself.
    """

    theta: nn.Parameter
    sample: torch.Tensor

    def __init__(
        self,
        size: int | None = None,
        kind: Kind = "hard",
        estimator: Estimator = "straight-through",
        *,
        like: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        shape = () if size is None else (size,)
        ones = torch.ones(shape) if like is None else like.new_ones(shape)
        self.kind, self.estimator, self.draws = kind, estimator, True
        self.theta = nn.Parameter(ones)
        self.register_buffer("sample", ones.clone())

    def forward(
        self,
        value: torch.Tensor,
        axis: int | None = None,
        draw: bool = True,
        tiled: bool = False,
    ) -> torch.Tensor:
        """Returns the gated value, of the same shape.

        Args:
            value: a tensor of any shape.
            axis: the axis that the gates belong to; each gate applies to equally many of its positions.
            draw: whether a Bernoulli gate draws a sample in this call. A gate with several places draws
                at one of them only.
            tiled: whether the positions of a gate are every n-th position of the axis; otherwise they
                are contiguous.
        """
        if draw:
            self.draw_anew()
        gate = self.values()
        if axis is not None:
            gate = spread(gate, value.shape[axis], tiled=tiled)
        return weigh(gate, value, axis, is_open=self._is_open())

    def draw_anew(self) -> None:
        """Draws a sample where each forward pass does: in train mode, unless the owner of the gate draws."""
        if self.draws and self.training and self.kind == "bernoulli":
            self.draw()

    def _is_open(self) -> bool:
        """Returns whether every gate is known to be 1 without waiting for a device."""
        drawn = self.kind == "bernoulli" and self.training and self.sample.device.type == "cpu"
        return drawn and not torch.compiler.is_compiling() and bool((self.sample == 1).all())

    def values(self) -> torch.Tensor:
        """Returns the multipliers, `[size]` or `[]`, with gradients to theta."""
        if self.kind == "soft" or (self.kind == "bernoulli" and not self.training):
            return self.theta
        theta = self.theta.detach()
        hard = self.sample.clone() if self.kind == "bernoulli" else (theta >= 0.5).to(theta.dtype)
        return hard + (self.theta - theta) if self.estimator == "straight-through" else hard

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None = None) -> None:
        """Draws a new sample for every gate."""
        self.sample.copy_(torch.bernoulli(self.theta.clamp(0, 1), generator=generator))

    def log_probability(self) -> torch.Tensor:
        """Returns the log-probability of the sample, a scalar with gradients to theta.

        Gates whose theta is 0 or 1 contribute nothing.
        """
        theta = self.theta.clamp(0, 1)
        inside = (theta > 0) & (theta < 1)
        safe = torch.where(inside, theta, 0.5)
        each = self.sample * safe.log() + (1 - self.sample) * (1 - safe).log()
        return torch.where(inside, each, 0).sum()

    @torch.no_grad()
    def set(self, value: float | torch.Tensor) -> None:
        """Sets theta, and sets the sample to 1 where theta >= 0.5 and to 0 elsewhere."""
        self.theta.copy_(torch.as_tensor(value, dtype=self.theta.dtype).expand_as(self.theta))
        self.sample.copy_((self.theta >= 0.5).to(self.theta.dtype))

    def settled(self) -> torch.Tensor:
        """Returns the multipliers of eval mode, `[size]` or `[]`, without gradients."""
        theta = self.theta.detach()
        return (theta >= 0.5).to(theta.dtype) if self.kind == "hard" else theta

    def extra_repr(self) -> str:
        """Returns the kind and the number of gates, for `print`."""
        return (
            f"{self.kind}, {self.theta.numel()} {'gate' if self.theta.dim() == 0 else 'unit gates'}"
        )


def weigh(
    gate: torch.Tensor, value: torch.Tensor, axis: int | None, *, is_open: bool = False
) -> torch.Tensor:
    """Multiplies a value by gates `[]`, or `[length]` along an axis; open gates pass it on as it is."""
    gate = gate.to(value.dtype)
    if gate.requires_grad and gate.dtype in _EXACT and not torch.compiler.is_compiling():
        weighed: torch.Tensor = _Weigh.apply(value, gate, axis, is_open)
        return weighed
    return value * _along(gate, axis, value)


class _Weigh(torch.autograd.Function):
    """Computes `value * gate` with a backward pass that needs less memory than that of `mul`.

    The gradient of `mul` would store all products before it sums them. Open gates pass value and
    gradient through unchanged.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        value: torch.Tensor, gate: torch.Tensor, axis: int | None, is_open: bool
    ) -> torch.Tensor:
        return value.view_as(value) if is_open else value * _along(gate, axis, value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: Any) -> None:
        *tensors, ctx.axis, ctx.is_open = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        value, gate = ctx.saved_tensors
        slope = _slope(gradient, value, ctx.axis)
        weighed = gradient if ctx.is_open else gradient * _along(gate, ctx.axis, value)
        return weighed, slope, None, None


def _slope(gradient: torch.Tensor, value: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Sums `gradient * value` over all axes, or all but one, in pieces whose products fit in a cache."""
    if axis is None:
        return torch.dot(gradient.reshape(-1), value.reshape(-1))
    shape = _shape(axis, value)
    whole = shape[0] != 1 or value.device.type != "cpu"
    rows = len(value) if whole else max(1, _PIECE * len(value) // max(1, value.numel()))
    pieces = zip(torch.split(gradient, rows), torch.split(value, rows), strict=True)
    return torch.stack([(g * v).sum_to_size(shape) for g, v in pieces]).sum(0).view(-1)


def _along(gate: torch.Tensor, axis: int | None, value: torch.Tensor) -> torch.Tensor:
    """Reshapes gates `[size]` so that they broadcast along `axis` of the value."""
    return gate if axis is None else gate.view(_shape(axis, value))


def _shape(axis: int, value: torch.Tensor) -> list[int]:
    return [n if i == axis % value.dim() else 1 for i, n in enumerate(value.shape)]


def spread(values: torch.Tensor, length: int, *, tiled: bool) -> torch.Tensor:
    """Spreads values `[n]` or `[]` over the positions of an axis whose length is a multiple of n.

    Args:
        values: one value for each gate.
        length: the length of the axis.
        tiled: each value applies to every n-th position; otherwise to a run of positions.

    Returns:
        One value for each position, `[length]`.
    """
    times = length // values.numel()
    if times == 1 or values.dim() == 0:
        return values.expand(length)
    return values.repeat(times) if tiled else values.repeat_interleave(times)


class Captured(Protocol):
    """What a program has: its graph, and the module that holds the leaves."""

    @property
    def module(self) -> fx.GraphModule: ...

    @property
    def graph(self) -> fx.Graph: ...


def arguments(call: fx.Node) -> dict[str, Any]:
    """Returns the arguments of a call of a gate in a graph by their names, see `Gate.forward`."""
    names = ("value", "axis", "draw", "tiled")
    given = dict(zip(names, call.args, strict=False)) | call.kwargs
    return {"axis": None, "draw": True, "tiled": False} | given


def gate_nodes(program: Captured) -> dict[str, list[fx.Node]]:
    """Returns the nodes that call each gate of a program, by the gate's path, in execution order."""
    found: dict[str, list[fx.Node]] = {}
    for node in program.graph.find_nodes(op="call_module"):
        if isinstance(program.module.get_submodule(str(node.target)), Gate):
            found.setdefault(str(node.target), []).append(node)
    return found


def gates(program: Captured) -> dict[str, Gate]:
    """Returns the gates of a program by their paths, in execution order."""
    return {path: _gate(program, path) for path in gate_nodes(program)}


def _gate(program: Captured, path: str) -> Gate:
    found = program.module.get_submodule(path)
    assert isinstance(found, Gate)
    return found
