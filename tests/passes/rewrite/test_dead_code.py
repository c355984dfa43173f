from __future__ import annotations

import operator

import torch
from torch import nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline
from fxprune_passes.rewrite.dead_code import DeadCode


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.one(x), torch.relu(self.norm(self.two(x)))


def names(program: Program) -> list[str]:
    return [n.name for n in program.nodes]


def dead_branch(training: bool) -> Program:
    """`Branches` whose second output is not returned any more."""
    program = fp.capture(Branches().train(training), torch.randn(3, 4))
    output = program.graph.output_node()
    output.args = ((output.args[0][0], output.args[0][0]),)  # type: ignore[index]
    program.module.recompile()
    return program


def test_a_chain_that_was_always_dead_goes_with_its_tensors() -> None:
    program = dead_branch(training=False)
    after = DeadCode()(program)
    assert "relu" in names(program)
    assert not {"relu", "linear_1", "batch_norm"} & set(names(after))
    assert set(after.tensors()) == {"one.weight", "one.bias"}
    x = torch.randn(3, 4)
    assert torch.equal(after(x)[0], program(x)[0])


def test_running_statistics_are_still_gathered_in_train_mode() -> None:
    after = DeadCode()(dead_branch(training=True))
    assert {"batch_norm", "add_", "linear_1"} <= set(names(after))
    assert "relu" not in names(after)


def test_nothing_dead_gives_the_same_program() -> None:
    program = fp.capture(nn.Linear(4, 4), torch.randn(2, 4))
    assert DeadCode()(program) is program


def test_an_unused_part_of_a_split_goes_and_the_split_stays() -> None:
    class Split(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, _ = torch.split(x, 2, 1)
            return first + 1

    program = fp.capture(Split(), torch.randn(2, 4))
    split = next(n for n in program.nodes if "split" in n.name)
    with program.graph.inserting_after(split):
        unread = program.graph.call_function(operator.getitem, (split, 1))
        unread.meta["val"] = split.meta["val"][1]
    program.module.recompile()
    after = DeadCode()(program)
    assert len(names(after)) < len(names(program))
    assert any("split" in n for n in names(after))


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.rand_like(x) + x, torch.rand_like(x)


def test_a_dead_draw_before_another_stays() -> None:
    program = fp.capture(Noisy(), torch.randn(2, 4))
    output = program.graph.output_node()
    output.args = ((output.args[0][1], output.args[0][1]),)  # type: ignore[index]
    result = run_pipeline(program, "dead-code")
    assert sum("rand" in n for n in names(result.program)) == 2
    assert [r.code for r in result.select(kind="missed")] == ["dead-code.random"]


def test_the_last_dead_draw_goes() -> None:
    program = fp.capture(Noisy(), torch.randn(2, 4))
    output = program.graph.output_node()
    output.args = ((output.args[0][0], output.args[0][0]),)  # type: ignore[index]
    result = run_pipeline(program, "dead-code")
    assert sum("rand" in n for n in names(result.program)) == 1


def test_one_rewrite_is_a_node_and_what_only_it_read() -> None:
    program = dead_branch(training=False)
    assert run_pipeline(program, "dead-code", limit=0).program is program
    assert run_pipeline(program, "dead-code").steps[0].rewrites == 1
