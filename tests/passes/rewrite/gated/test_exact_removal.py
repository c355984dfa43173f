"""Tests of what delete-gated keeps: the gated program, whatever stands between a gate and the next sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune as fp
from fxprune.graph.gate import Gate, gates
from fxprune.graph.program import Program
from fxprune.pipeline import Context, run_pipeline
from fxprune.pipeline.result import Result

Middle = Callable[[Tensor], Tensor]
LSTM = nn.LSTM(8, 8, batch_first=True).double()
X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Between(nn.Module):
    """Two linear layers with something between them."""

    def __init__(self, middle: Middle) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.middle, self.b = nn.Linear(6, 8), middle, nn.Linear(8, 4)
        self.mark = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(self.mark(self.a(x))))


def gated(model: nn.Module, *, train: bool = False) -> Program:
    """Unit gates where they belong, a third of them at 0."""
    program = fp.capture(model.double().train(train), (X,))
    program = run_pipeline(program, "insert-gates{scope=unit exact=false}").program
    return closed(program)


def closed(program: Program) -> Program:
    for gate in gates(program).values():
        gate.set((torch.arange(gate.theta.numel()) % 3 > 0).to(gate.theta.dtype))
    return program


def at_once(model: nn.Module, *, train: bool = False) -> Program:
    """The same gates, right behind the layer: what follows reads the 0."""
    program = fp.capture(model.double().train(train), (X,))
    editor = Context().edit(program)
    node = next(editor.node(n) for n in program.nodes if "linear" in n.name)
    gate = Gate(8, like=torch.zeros(0, dtype=torch.float64))
    path = editor.add_leaf("a.gate", gate)
    editor.replace(node, editor.call_leaf(path, (node, 2), before=node.next, like=node))
    return closed(editor.finish())


def deleted(program: Program) -> tuple[Result, int]:
    """What delete-gated makes of a program, which computes the same; how many units of the first layer are left."""
    result = run_pipeline(program, "delete-gated")
    torch.testing.assert_close(result.program(X), program(X), rtol=1e-9, atol=1e-9)
    return result, result.program.tensors()["a.weight"].shape[0]


def response(x: Tensor) -> Tensor:
    """Global response norm (ConvNeXt V2)."""
    g = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x * (g / (g.mean(-1, keepdim=True) + 0.1)) + x


def root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1)


GOES: dict[str, Middle] = {
    "identity": lambda x: x,
    "gelu": F.gelu,
    "sigmoid, into the bias": torch.sigmoid,
    "cos, into the bias": lambda x: torch.cos(x) + 0.5,
    "rms norm": nn.RMSNorm(8, eps=0.1),
    "rms norm of the type's eps": nn.RMSNorm(8),
    "rms norm without a weight": nn.RMSNorm(8, elementwise_affine=False),
    "rms norm as a formula": root_mean_square,
    "normalize": lambda x: F.normalize(x, dim=-1),
    "response norm": response,
    "centred by the mean": lambda x: x * x.mean(-1, keepdim=True),
    "cosine similarity": lambda x: x * F.cosine_similarity(x, x.flip(1), -1).unsqueeze(-1),
    "distances": lambda x: x * torch.cdist(x, x.flip(1)).mean(-1, keepdim=True),
    "attention logits": lambda x: torch.softmax(x @ x.mT, -1) @ x,
    "moved and back": lambda x: x.mT.flip(2).unsqueeze(-1).squeeze(-1).permute(0, 2, 1),
}
STAYS: dict[str, Middle] = {
    "layer norm": nn.LayerNorm(8),
    "variance": lambda x: x / (x.var(-1, keepdim=True) + 1),
    "deviation": lambda x: x / (x.std(-1, keepdim=True) + 1),
    "softmax": lambda x: torch.softmax(x, -1),
    "logsumexp": lambda x: x * torch.logsumexp(x, -1, keepdim=True),
    "largest": lambda x: x * x.amax(-1, keepdim=True),
    "sorted": lambda x: x.sort(-1).values,
    "local response norm": lambda x: F.local_response_norm(x.mT, 3).mT,
    "recurrence": lambda x: LSTM(x)[0],
}


@pytest.mark.parametrize("name", GOES)
@pytest.mark.parametrize("place", [gated, at_once])
def test_units_go_where_the_gated_program_does_not_miss_them(
    name: str, place: Callable[[nn.Module], Program]
) -> None:
    result, left = deleted(place(Between(GOES[name])))
    assert left == 5
    assert not result.select("delete-gated", "missed")


@pytest.mark.parametrize("name", STAYS)
@pytest.mark.parametrize("place", [gated, at_once])
def test_units_stay_where_the_gated_program_misses_them(
    name: str, place: Callable[[nn.Module], Program]
) -> None:
    program = place(Between(STAYS[name]))
    result, left = deleted(program)
    assert left == 8 or name == "recurrence"
    asked = [r.code for r in result.remarks if r.code.startswith("delete-gated.")]
    assert not gates(program) or asked


def test_the_remark_names_the_norm_and_its_line() -> None:
    result, _ = deleted(gated(Between(nn.LayerNorm(8))))
    (left,) = result.select("delete-gated", "missed")
    assert left.code == "delete-gated.inexact"
    assert "layer_norm" in left.why
    assert "test_exact_removal.py:" in left.why
    assert "statistics" in left.why


def test_asked_for_units_go_and_the_change_is_measured() -> None:
    program = gated(Between(nn.LayerNorm(8)))
    result = run_pipeline(program, "delete-gated{exact=false}")
    assert result.program.tensors()["a.weight"].shape[0] == 5
    (said,) = [r for r in result.remarks if r.code == "delete-gated.change"]
    with torch.no_grad():
        wanted, found = program(X), result.program(X)
    assert float((found - wanted).abs().max() / wanted.abs().max()) > 0.01
    assert "outputs change by at most" in said.what


@pytest.mark.parametrize("name", GOES)
def test_in_train_mode_no_bias_takes_up_a_constant(name: str) -> None:
    program = at_once(Between(GOES[name]), train=True)
    result, left = deleted(program)
    assert left == (8 if "bias" in name else 5)
    bias = result.program.tensors()["b.bias"]
    assert torch.equal(bias, program.tensors()["b.bias"])


def test_a_weight_in_training_is_not_scaled_however_often_units_go() -> None:
    program = gated(Between(nn.RMSNorm(8, eps=0.1)), train=True)
    result, _ = deleted(program)
    again = run_pipeline(result.program, "insert-gates{scope=unit}").program
    twice, left = deleted(closed(again))
    assert left == 3
    muls = [n for n in twice.program.nodes if n.target is torch.ops.aten.mul.Tensor]
    assert len(muls) == 1
    assert bool((twice.program.tensors()["middle.weight"] == 1).all())


def test_a_decision_says_where_the_network_without_units_differs() -> None:
    exact = run_pipeline(gated(Between(F.relu)), "decide-gated | shrink")
    assert not [r for r in exact.remarks if r.code == "decide-gated.differs"]
    for norm in (nn.LayerNorm(8), nn.RMSNorm(8)):
        result = run_pipeline(gated(Between(norm)), "decide-gated | shrink")
        (said,) = [r for r in result.remarks if r.code == "decide-gated.differs"]
        assert "norm" in said.why


class Outer(nn.Module):
    """An outer product of two layers, flattened; another output is their source's."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 4), nn.Linear(6, 5)
        self.end, self.beside = nn.Linear(20, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.c(x)
        both = (self.one(x).unsqueeze(-1) * self.two(x).unsqueeze(-2)).flatten(-2)
        return self.end(both), self.beside(x)


@pytest.mark.parametrize("where", ["one.gate", "two.gate", "*.gate"])
def test_a_0_that_reaches_an_output_of_several_is_left(where: str) -> None:
    program = fp.capture(Outer().double().eval(), (X,))
    text = f"insert-gates{{scope=layer}} | set-gates{{where={where}}}"
    program = run_pipeline(program, text).program
    result = run_pipeline(program, "delete-gated")
    for a, b in zip(result.program(X), program(X), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_two_gates_on_a_unit_never_leave_an_axis_empty() -> None:
    program = gated(Between(F.relu))
    program = run_pipeline(program, "insert-gates{scope=unit}").program
    first, second = gates(program).values()
    second.set(1 - first.theta)
    result, left = deleted(program)
    assert left == 1
    assert "delete-gated.last" in [r.code for r in result.select("delete-gated", "missed")]
