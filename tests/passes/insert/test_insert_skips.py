"""Tests of insert-skips: which sections get a shortcut, of which form, and that these are blocks then."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.graph.program import Program
from fxprune.pipeline import Result, run_pipeline
from fxprune.structure.blocks import find_blocks


def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def vgg() -> nn.Module:
    """VGG-11 with an eighth of the channels."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    width = 3
    for part in (8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"):
        if isinstance(part, int):
            layers += [nn.Conv2d(width, part, 3, padding=1), nn.BatchNorm2d(part), nn.ReLU()]
            width = part
        else:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(64 * 49, 32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def skipped(model: nn.Module, x: Tensor, options: str = "") -> Result:
    return run_pipeline(fp.capture(model.eval(), x), f"insert-skips{options}")


def shortcuts(program: Program) -> list[str]:
    table = str(find_blocks(program)).splitlines()
    return [line.split("  ")[0].strip() for line in table[3:] if line][:-3]


X28, X32 = torch.randn(2, 1, 28, 28), torch.randn(2, 3, 32, 32)


def test_the_sections_of_lenet() -> None:
    result = skipped(lenet(), X28)
    assert [r.what for r in result.select(kind="applied")] == [
        "inserted a shortcut around 3: average pooling, projection",
        "inserted a shortcut around 7: average pooling, flatten, projection",
        "inserted a shortcut around 9: projection",
    ]
    assert [r.why for r in result.select("insert-skips", "missed")] == [
        "no activation function precedes it"
    ]
    assert {n: tuple(t.shape) for n, t in result.program.tensors().items() if "skip" in n} == {
        "3.skip.weight": (16, 6, 1, 1),
        "7.skip.weight": (120, 16),
        "9.skip.weight": (84, 120),
    }
    assert shortcuts(result.program) == ["3", "7", "9"]


def test_a_section_is_its_shortcut_and_itself() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    x = torch.randn(3, 4)
    program = skipped(model, x).program
    z = model[:2](x)
    torch.testing.assert_close(program(x), model[4](z + model[2:4](z)))


def test_every_section_of_vgg_is_a_block() -> None:
    result = skipped(vgg(), X32)
    assert len(find_blocks(result.program)) == len(result.select(kind="applied")) == 9
    forms = [r.what.partition(": ")[2] for r in result.select(kind="applied")]
    assert forms == [
        *("average pooling, projection", "average pooling, projection", "identity"),
        *("average pooling, projection", "identity", "average pooling", "identity"),
        *("average pooling, flatten, projection", "identity"),
    ]
    result.program(torch.randn(5, 3, 32, 32))


@pytest.mark.parametrize(("make", "x"), [(lenet, X28), (vgg, X32)])
def test_whole_layers_can_go(make: object, x: Tensor) -> None:
    model = make()  # type: ignore[operator]
    gated = run_pipeline(skipped(model, x).program, "insert-gates | set-gates{value=0}").program
    result = run_pipeline(gated, "delete-gated | dead-code")
    assert len(result.select("delete-gated", "applied")) == len(find_blocks(gated))
    assert result.steps[0].checks
    assert result.comparison.ratios["parameters"] < 0.5
    torch.testing.assert_close(result.program(x), gated(x))
    assert not find_blocks(result.program)
    layers = [n for n in result.program.tensors() if n.endswith("weight") and "skip" not in n]
    assert {n.partition(".")[0] for n in layers} >= {"0"}
    result.program.train()(x).sum().backward()


def test_one_layer_of_its_own_choice() -> None:
    result = skipped(lenet(), X28, "{where=9}")
    assert shortcuts(result.program) == ["9"]


def test_new_weights_come_from_the_seed() -> None:
    program = fp.capture(lenet().eval(), X28)
    runs = [run_pipeline(program, "insert-skips", seed=s).program.tensors() for s in (0, 0, 1)]
    first, second, third = (r["9.skip.weight"] for r in runs)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert float(first.detach().std()) == pytest.approx(120**-0.5, rel=0.1)
    assert first.requires_grad


def test_uneven_sizes_are_pooled_to_the_size_wanted() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 1, 1)
    )
    x = torch.randn(2, 1, 8, 8)
    program = run_pipeline(fp.capture(model, x, dynamic_shapes="batch"), "insert-skips").program
    assert any("adaptive_avg_pool2d" in str(n.target) for n in program.nodes)
    program(torch.randn(2, 1, 8, 8))


def test_a_larger_result_gets_none() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, 2), nn.ReLU())
    result = skipped(model, torch.randn(2, 1, 4, 4))
    assert not result.changed
    assert "more positions" in result.select(kind="missed")[1].why


def test_an_add_ends_a_section(program: Program) -> None:
    result = run_pipeline(program, "insert-skips")
    assert [r.what for r in result.select(kind="applied")] == [
        "inserted a shortcut around one.0: projection",
        "inserted a shortcut around two.0: projection",
    ]
    assert len(find_blocks(result.program)) == len(find_blocks(program)) + 2


def test_two_layers_are_no_section() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU())
    result = skipped(model, torch.randn(2, 4))
    assert "2 weighted layers" in result.select(kind="missed")[-1].why


def test_limit_and_tokens() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4), nn.GELU()) * 3)
    program = fp.capture(model.eval(), torch.randn(2, 7, 4))
    result = run_pipeline(program, "insert-skips", limit=1)
    assert len(find_blocks(result.program)) == 1
    assert len(find_blocks(run_pipeline(program, "insert-skips").program)) == 2
