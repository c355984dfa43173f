"""Running passes: what is checked, rolled back, remarked on and counted."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, cast

import pytest
import torch
from torch import fx, nn

import fxprune as fp
from fxprune.errors import OptionError, PipelineError, VerifyError
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Repeat, run_pipeline
from fxprune.testing.passes import DropOnes, Raises, Scale
from fxprune.verify import Verify

X = (torch.randn(2, 4),)


@dataclass(frozen=True)
class Count(fp.Analysis[int]):
    """How many nodes there are."""

    name: ClassVar[str] = "count"

    def analyse(self, program: Program, ctx: Context) -> int:
        return len(list(program.nodes))


@dataclass(frozen=True)
class TakeFirst(fp.Decision):
    """Takes the first unit."""

    name: ClassVar[str] = "take-first"

    def decide(self, program: Program, ctx: Context) -> Iterable[int]:
        return fp.groups(program)[0].units[:1].tolist()


@dataclass(frozen=True)
class Remove(fp.Rewrite):
    """Removes what was decided on."""

    name: ClassVar[str] = "remove"
    keeps = "silenced"
    shrinks: ClassVar[bool] = True

    def rewrite(self, program: Program, ctx: Context) -> Program:
        units, ctx.pending = [u for u in ctx.pending if isinstance(u, int)], set()
        return ctx.remove(program, units) if units else program


@dataclass(frozen=True)
class Flip(fp.Rewrite):
    """Gives another program of the same function each time."""

    name: ClassVar[str] = "flip"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        return program.with_module(copy.copy(program.module))


@dataclass(frozen=True)
class WritesInPlace(fp.Rewrite):
    """Writes into the weights that it was given."""

    name: ClassVar[str] = "writes-in-place"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        with torch.no_grad():
            next(iter(program.module.parameters())).mul_(2)
        return program


@dataclass(frozen=True)
class GivesNothing(fp.Rewrite):
    """Forgets to return a program."""

    name: ClassVar[str] = "gives-nothing"

    def rewrite(self, program: Program, ctx: Context) -> Program:
        return cast(Program, None)


def codes(result: fp.Result) -> list[str]:
    return [r.code for r in result.remarks]


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_model_is_captured_and_stays_as_it_is(small: nn.Module) -> None:
    before = state_of(small)
    result = fp.run(small, X, "drop-identity")
    assert result.changed
    assert torch.equal(result.program(*X), small(*X))
    assert all(torch.equal(before[k], v) for k, v in small.state_dict().items())


def test_result_prints_steps_and_totals(ones: Program) -> None:
    text = str(fp.run(ones, None, [DropOnes(), Count()]))
    assert "drop-ones" in text
    assert "40" in text
    assert "2 agree" not in text.splitlines()[0]
    assert "parameters" in text


def test_result_is_json(ones: Program) -> None:
    data = json.loads(json.dumps(fp.run(ones, None, [DropOnes()]).to_json()))
    assert data["steps"][0]["rewrites"] == 40
    assert data["before"]["total"] == data["after"]["total"]
    assert data["pipeline"] == "drop-ones"


def test_limit_counts_single_rewrites(ones: Program) -> None:
    result = fp.run(ones, None, [DropOnes(), DropOnes()], limit=7)
    assert [s.rewrites for s in result.steps] == [7, 0]
    assert len(result.select("drop-ones", "applied")) == 7


def test_a_limit_is_no_less_than_0(ones: Program) -> None:
    with pytest.raises(OptionError, match="limit=-1"):
        fp.run(ones, None, [DropOnes()], limit=-1)


def test_no_effect_is_visible(small: nn.Module) -> None:
    result = fp.run(small, X, "")
    assert codes(result) == ["pipeline.empty"]
    assert "no pass ran" in str(result)
    again = fp.run(result.program, None, "repeat{max=3}(drop-identity)")
    assert codes(again) == ["drop-identity.dropped", "drop-identity.unchanged"]


def test_a_pass_that_raises_names_itself(small: nn.Module) -> None:
    before = state_of(small)
    with pytest.raises(PipelineError, match="pass raises failed: ZeroDivisionError") as caught:
        fp.run(small, X, ["drop-identity", Raises()])
    assert caught.value.failed == "raises"
    assert not any("dropout" in str(n.target) for n in caught.value.program.nodes)
    assert "leave raises out" in caught.value.do
    assert all(torch.equal(before[k], v) for k, v in small.state_dict().items())


def test_a_pass_that_breaks_what_it_declares_is_rolled_back(ones: Program) -> None:
    with pytest.raises(PipelineError, match="differs from the program before") as caught:
        fp.run(ones, None, [DropOnes(bad=3)])
    assert caught.value.program is ones
    assert isinstance(caught.value.__cause__, VerifyError)
    assert "fp.bisect" in caught.value.do


def test_without_verification_it_goes_through(ones: Program) -> None:
    result = fp.run(ones, None, [DropOnes(bad=3)], verify=False)
    assert torch.allclose(result.program(*X), 2 * ones(*X))
    assert result.steps[0].checks == ()


def test_a_pass_that_keeps_nothing_is_not_compared(small: nn.Module) -> None:
    result = fp.run(small, X, [Scale("0.weight")])
    assert codes(result) == ["scale.doubled", "scale.not-verified"]
    assert result.changed


def test_a_pass_that_writes_into_its_program_is_found(small: nn.Module) -> None:
    with pytest.raises(PipelineError, match="changed the program that it was given"):
        fp.run(copy.deepcopy(small), X, [WritesInPlace()])


def test_a_pass_must_return_a_program(small: nn.Module) -> None:
    with pytest.raises(PipelineError, match="returned a NoneType"):
        fp.run(small, X, [GivesNothing()])


def test_units_wait_for_a_shrink(small: nn.Module) -> None:
    result = fp.run(small, X, [TakeFirst(), Remove()])
    assert result.plans[0].removed.tolist()
    assert result.program.tensors()["0.weight"].shape == (7, 4)
    assert result.steps[0].changed
    left = fp.run(small, X, [TakeFirst()])
    assert len(left.pending) == 1
    assert codes(left) == ["take-first.decided", "pipeline.pending"]
    with pytest.raises(OptionError, match="put `shrink` before drop-identity"):
        fp.run(small, X, [TakeFirst(), "drop-identity"])


def test_a_loop_goes_on_while_units_are_decided_on(small: nn.Module) -> None:
    result = fp.run(small, X, [Repeat(fp.Pipeline([TakeFirst(), Remove()]), max=3)])
    assert result.program.tensors()["0.weight"].shape == (5, 4)
    assert codes(result)[-1] == "repeat.limit"


def test_a_loop_stops_at_its_limit_and_says_so(small: nn.Module) -> None:
    result = fp.run(small, X, [Repeat(fp.Pipeline([Flip()]), max=2)])
    assert len(result.steps) == 2
    assert result.select("repeat")[0].what == "still changing after 2 rounds"


def test_a_disabled_pass_is_left_out(small: nn.Module) -> None:
    result = fp.run(small, X, "drop-identity", disable=["drop-*", "fold-*"])
    assert not result.changed
    assert codes(result) == ["drop-identity.disabled", "pipeline.disabled-nothing"]
    assert "disabled" in result.table()


def test_a_meta_program_is_rewritten_and_not_compared() -> None:
    model = nn.Sequential(nn.Linear(4, 4, device="meta"), nn.Dropout()).eval()
    result = fp.run(model, torch.randn(2, 4, device="meta"), "drop-identity")
    assert codes(result) == ["drop-identity.dropped", "drop-identity.not-verified"]


@pytest.mark.parametrize(("how", "checks"), [("local", 1), ("full", 2)])
def test_a_train_program_is_verified(how: Verify, checks: int) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    program = fp.capture(model, X)
    before = state_of(program.module)
    result = fp.run(program, None, [Flip()], verify=how)
    assert len(result.steps[0].checks) == checks
    assert result.program.training
    assert all(torch.equal(before[k], v) for k, v in program.module.state_dict().items())


def test_analyses_are_worked_out_once(small: nn.Module) -> None:
    program = fp.capture(small, X)
    ctx = Context()
    assert ctx.get(Count(), program) is ctx.get(Count(), program)
    assert "count.result" in codes(run_pipeline(program, Count()))


def test_a_class_is_no_pass(small: nn.Module) -> None:
    with pytest.raises(OptionError, match=r"give an instance: DropOnes\(\)"):
        fp.run(small, X, DropOnes)


def test_random_numbers_depend_on_the_seed_and_the_pass_before() -> None:
    ctx = Context(seed=3)
    first = ctx.rng.random()
    assert ctx.fork().rng.random() == ctx.rng.random() != first


def test_a_rewrite_alone_is_a_function(small: nn.Module) -> None:
    program = fp.capture(small, X)
    module = DropOnes()(program.module)
    assert isinstance(module.graph_module, fx.GraphModule)
    assert not module.modified
    assert module.graph_module is program.module
