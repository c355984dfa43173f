from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.analysis.cache import solved
from fxprune.errors import VerifyError
from fxprune.graph.program import Program
from fxprune.verify import relative_error
from fxprune.verify.reference import Silenced


def half(program: Program) -> tuple[object, Program]:
    plan = fp.plan(program, [u for g in fp.groups(program) for u in g.units[::2]])
    return plan, fp.shrink(program, plan)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agreement(program: Program, dtype: torch.dtype) -> None:
    plan, small = half(program)
    check = fp.verify(program, plan, small, dtype=dtype)  # type: ignore[arg-type]
    assert check.ok
    assert check.batches == (2, 3)


@pytest.mark.parametrize(
    "name", ["one.0.bias", "two.1.running_var", "head.weight", "stem.0.weight"]
)
def test_one_wrong_number_in_any_tensor_is_found(program: Program, name: str) -> None:
    plan, small = half(program)
    with torch.no_grad():
        small.tensors()[name].view(-1)[0] += 0.5
    check = fp.verify(program, plan, small)  # type: ignore[arg-type]
    assert not check.ok
    assert name.split(".")[0] in check.first_bad_node
    with pytest.raises(VerifyError, match="differs"):
        check.raise_if_bad()


def test_swapped_channels_are_found(program: Program) -> None:
    plan, small = half(program)
    with torch.no_grad():
        weight = small.tensors()["one.2.weight"]
        weight.copy_(weight[:, torch.randperm(weight.shape[1])])
    assert not fp.verify(program, plan, small).ok  # type: ignore[arg-type]


def test_zero_head_does_not_hide_errors(residual: nn.Module) -> None:
    model = copy.deepcopy(residual)
    nn.init.zeros_(model.get_parameter("head.weight"))
    program = fp.capture(model, torch.randn(2, 3, 8, 8))
    plan, small = half(program)
    with torch.no_grad():
        small.tensors()["stem.0.weight"].view(-1)[0] += 0.5
    assert not fp.verify(program, plan, small).ok  # type: ignore[arg-type]


def test_train_mode_is_verified_with_batch_statistics(residual: nn.Module) -> None:
    program = fp.capture(copy.deepcopy(residual).train(), torch.randn(4, 3, 8, 8))
    before = {n: t.clone() for n, t in program.tensors().items()}
    plan, small = half(program)
    assert fp.verify(program, plan, small).ok  # type: ignore[arg-type]
    assert all(torch.equal(t, before[n]) for n, t in program.tensors().items())


def test_meta_programs_are_planned_but_not_verified() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    outcome = fp.prune(model, torch.randn(2, 8), importance="random", verify=False)
    assert all(t.is_meta for t in outcome.program.tensors().values())
    with pytest.raises(VerifyError, match="meta"):
        fp.verify(outcome.original, outcome.plan, outcome.program)


def test_not_finite_and_misshapen_are_infinitely_wrong() -> None:
    one = torch.ones(3)
    assert relative_error(one * float("nan"), one) == float("inf")
    assert relative_error(torch.ones(4), one) == float("inf")
    assert relative_error(torch.tensor([1, 2]), torch.tensor([1, 3])) == float("inf")
    assert relative_error(one * 1.5, one) == 0.5


class Faint(nn.Module):
    """What its layers compute is next to nothing of its output."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.first(x))
        return x + y * self.scale


@pytest.mark.parametrize(("scale", "blind"), [(1.0, False), (1e-12, True), (0.0, True)])
def test_a_check_that_could_not_fail_says_so(scale: float, blind: bool) -> None:
    program = fp.capture(Faint(scale).eval(), torch.randn(3, 4))
    plan = fp.plan(program, {"first.weight": (0, [1, 2])})
    check = fp.verify(program, plan, fp.shrink(program, plan))
    assert check.ok
    assert check.blind == blind
    assert ("do not show whether it is right" in str(check)) == blind


def test_nothing_removed_changes_nothing() -> None:
    program = fp.capture(Faint(1.0).eval(), torch.randn(3, 4))
    plan = fp.plan(program, [])
    check = fp.verify(program, plan, fp.shrink(program, plan))
    assert check.ok
    assert check.change is None
    assert not check.blind


class Logarithm(nn.Module):
    """Is not a number where the logarithm is of a negative one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).log())


def test_a_model_that_is_not_a_number_by_itself_is_told_so() -> None:
    with pytest.raises(VerifyError, match="the original itself returns NaN") as error:
        fp.prune(Logarithm().eval(), torch.ones(2, 4), keep=0.5)
    assert "aten.log" in error.value.where
    assert "verify=False" in error.value.do


def test_inputs_of_a_wrong_type_are_told_so() -> None:
    with pytest.raises(VerifyError, match="does not run on random inputs") as error:
        fp.prune(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), torch.ones(2, 4).long(), keep=0.5)
    assert "dtype" in error.value.why


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_norms_of_large_numbers_are_silenced_in_half_precision(norm: type[nn.Module]) -> None:
    """The squares of 600 numbers of about 20 sum up to more than float16 can hold."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 600), norm(600), nn.Linear(600, 2))
    program = fp.capture(model.half().eval(), torch.randn(2, 4).half())
    removed = fp.groups(program)[0].units[::2]
    x = (40 * torch.randn(2, 4).half(),)
    found, wanted = (
        Silenced(program, solved(program), removed, dtype).evaluate(x, {})[0]
        for dtype in (torch.float16, torch.float64)
    )
    assert found.dtype == torch.float16
    assert relative_error(found, wanted) < 0.02
