from __future__ import annotations

from importlib.metadata import entry_points

import torch
from torch import nn

import fxprune as fp
from fxprune_passes.rewrite.drop_identity import DropIdentity, handed_on


class Identities(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.inner(x) * 1 + 0) * 2


def test_eval_program_loses_its_identities_and_stays_exact() -> None:
    program = fp.capture(Identities().eval(), torch.randn(2, 4))
    after = DropIdentity()(program)
    x = torch.randn(3, 4)
    assert torch.equal(after(x), program(x))
    assert sum(handed_on(n) is not None for n in program.nodes) == 3
    assert not any(handed_on(n) for n in after.nodes)


def test_train_program_keeps_its_dropout() -> None:
    after = DropIdentity()(fp.capture(Identities().train(), torch.randn(2, 4)))
    assert any("dropout" in str(n.target) for n in after.nodes)


def test_nothing_to_drop_gives_the_same_program() -> None:
    program = fp.capture(nn.Linear(4, 4), torch.randn(2, 4))
    assert DropIdentity()(program) is program


def test_the_pass_is_found_by_entry_point() -> None:
    found = {e.name: e for e in entry_points(group="fxprune.passes")}
    assert found["drop-identity"].load() is DropIdentity


class Parts(nn.Module):
    """Splits a value and joins the parts, once in their order, once in another, once along another axis."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.split(x, [1, 3, 2], 1)
        other = torch.cat(x.chunk(2, 2), 1).reshape(x.shape)
        return torch.cat(parts, 1) + torch.cat(parts[::-1], 1) + torch.cat(parts, -2) + other


def test_a_split_that_is_joined_again_goes() -> None:
    program = fp.capture(Parts(), torch.randn(2, 6, 4))
    after = DropIdentity()(program)
    x = torch.randn(3, 6, 4)
    assert torch.equal(after(x), program(x))
    assert sum("cat" in str(n.target) for n in after.nodes) == 2


class Shapes(nn.Module):
    """Slices of all and of a part, views to the same and to another shape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x[:, :][:, -4:].view(x.shape[0], 4).expand(-1, 4)
        return y.reshape(-1, 2)[:, 1:] * 2


def test_slices_of_all_and_views_to_the_same_shape_go() -> None:
    program = fp.capture(Shapes(), torch.randn(3, 4), dynamic_shapes="batch")
    after = DropIdentity()(program)
    x = torch.randn(5, 4)
    assert torch.equal(after(x), program(x))
    names = [str(n.target).split(".")[1] for n in after.nodes if n.op == "call_function"]
    assert [n for n in names if "sym" not in n] == ["reshape", "slice", "mul"]
