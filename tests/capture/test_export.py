"""Tests of fxprune.capture.export."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import fxprune as fp
from fxprune.capture.export import capture
from fxprune.capture.failure import at_fixed_batch
from fxprune.errors import CaptureError
from fxprune.graph.program import Program, build_module, module_class, module_path, source_line


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).eval()


class Fn(nn.Module):
    """A linear whose output goes through a function."""

    def __init__(self, function: Callable[..., Any], width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.function = function

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.linear(x), *args, **kwargs)


@dataclass
class Pair:
    first: Tensor
    second: Tensor


torch.export.register_dataclass(Pair)


def codes(program: Program) -> list[str]:
    return [r.code for r in program.remarks]


def test_resnet18_is_the_model_at_another_batch() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18().eval()
    program = capture(model, torch.randn(1, 3, 64, 64))
    assert list(program.module.state_dict()) == list(model.state_dict())
    assert program.free_batch
    assert not program.remarks
    x = torch.randn(5, 3, 64, 64)
    torch.testing.assert_close(program(x), model(x), rtol=0, atol=0)


def test_tensors_are_shared_and_the_model_is_as_before() -> None:
    model = small().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    program = capture(model, torch.randn(2, 3, 8, 8))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(program.tensors()[k] is v for k, v in model.named_parameters())


def test_attributes_written_by_forward_are_put_back() -> None:
    def remember(x: Tensor) -> Tensor:
        model.last = [1]  # type: ignore[assignment]
        return x

    model = Fn(remember)
    capture(model, torch.randn(2, 4))
    assert "last" not in vars(model)


def test_nodes_know_module_class_line_and_value() -> None:
    program = capture(nn.Sequential(small()), torch.randn(2, 3, 8, 8))
    node = next(n for n in program.nodes if "conv2d" in str(n.target))
    assert (module_path(node), module_class(node)) == ("0.0", "Conv2d")
    assert ":" in source_line(node)
    assert not isinstance(node.meta["val"].shape[0], int)


def test_fixed_batch_is_remarked() -> None:
    program = capture(Fn(lambda x: x.view(2, 2, 2)), torch.randn(2, 4))
    assert not program.free_batch
    assert codes(program) == ["capture.batch-fixed"]
    assert program.remarks[0].why


def test_static_batch_on_request() -> None:
    program = capture(small(), torch.randn(2, 3, 8, 8), dynamic_batch=False)
    assert not program.free_batch
    assert not program.remarks


def test_example_batch_of_one_keeps_the_users_input() -> None:
    x = torch.randn(1, 4)
    program = capture(Fn(torch.relu), x)
    assert program.free_batch
    assert program.args[0] is x
    assert program(torch.randn(3, 4)).shape == (3, 4)


def test_a_mask_beside_the_batch_stays_static() -> None:
    program = capture(Fn(lambda x, mask: x @ mask), (torch.randn(2, 3, 4), torch.randn(4, 4)))
    assert program.free_batch
    assert program(torch.randn(7, 3, 4), torch.eye(4)).shape == (7, 3, 4)


def test_tied_weights_keep_both_names() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    program = capture(model, torch.tensor([[1, 2]]))
    assert program.tensors()["0.weight"] is program.tensors()["1.weight"]
    assert list(program.module.state_dict()) == list(model.state_dict())


def test_a_shared_module_is_one_parameter_and_one_path() -> None:
    conv = nn.Conv2d(4, 4, 1)
    model: nn.Module = Fn(lambda x: model.get_submodule("conv")(model.get_submodule("conv")(x)))
    model.conv = conv
    program = capture(model, torch.randn(2, 4, 4, 4))
    calls = [n for n in program.nodes if "conv2d" in str(n.target)]
    assert len(calls) == 2
    assert calls[0].args[1] is calls[1].args[1]
    assert {module_path(n) for n in calls} == {"conv"}


def test_unused_parameter_and_flags_are_kept() -> None:
    model = Fn(torch.relu)
    model.unused = nn.Parameter(torch.ones(()), requires_grad=False)
    model.to(torch.bfloat16)
    program = capture(model, torch.randn(2, 4, dtype=torch.bfloat16))
    kept = program.tensors()["unused"]
    assert kept is model.unused
    assert list(program.module.state_dict()) == list(model.state_dict())


class Minus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, more: list[torch.Tensor]) -> torch.Tensor:
        return self.a(x) - self.b(more[0])


def test_a_tensor_that_is_given_twice_stands_for_two_inputs() -> None:
    model, x, y = Minus().eval(), torch.randn(2, 4), torch.randn(3, 4)
    program = capture(model, (x, [x]))
    torch.testing.assert_close(program(y, [2 * y]), model(y, [2 * y]))


def test_kwargs_none_numbers_and_flags() -> None:
    def function(x: Tensor, scale: float, *, other: Tensor, flag: bool, none: None = None) -> Any:
        return x * scale + other if flag else x

    model, x = Fn(function), torch.randn(2, 4)
    program = capture(model, (x, 2.0), {"other": x, "flag": True, "none": None})
    given = torch.randn(3, 4)
    result = program(given, 2.0, other=given, flag=True, none=None)
    torch.testing.assert_close(result, model(given, 2.0, other=given, flag=True))


@pytest.mark.parametrize(
    "pack", [lambda x: {"a": x, "b": [x, -x]}, lambda x: (x, (x * 2, None)), lambda x: Pair(x, -x)]
)
def test_structured_outputs(pack: Callable[[Tensor], Any]) -> None:
    model, x = Fn(pack), torch.randn(3, 4)
    got, want = capture(model, x)(x), model(x)
    assert type(got) is type(want)
    pairs = zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True)
    assert all(a is b is None or torch.equal(a, b) for a, b in pairs)


def test_clone_runs_and_keeps_constants() -> None:
    table = torch.arange(4.0)
    model = Fn(lambda x: x + table + torch.tensor([1.0, 2.0, 3.0, 4.0]))
    program, x = capture(model, torch.randn(2, 4)), torch.randn(3, 4)
    twin = build_module(program.module, copy.deepcopy(program.graph), training=False)
    torch.testing.assert_close(twin(x), model(x))
    assert list(program.module.state_dict()) == list(model.state_dict())


def test_symbolically_traced_graph_module() -> None:
    model = small()
    program = capture(fx.symbolic_trace(model), torch.randn(2, 3, 8, 8))
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(program(x), model(x))
    assert list(program.module.state_dict()) == list(model.state_dict())
    assert "0" in {module_path(n) for n in program.nodes}


def test_exported_program() -> None:
    model, x = small(), torch.randn(2, 3, 8, 8)
    program = capture(torch.export.export(model, (x,)))
    torch.testing.assert_close(program(x), model(x))
    assert not program.free_batch
    assert not program.training
    assert list(program.module.state_dict()) == list(model.state_dict())


def test_exported_program_keeps_its_free_batch_and_takes_other_examples() -> None:
    model, x = small(), torch.randn(3, 3, 8, 8)
    batch = ({0: torch.export.Dim.AUTO},)
    exported = torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=batch)
    program = capture(exported, x)
    assert program.free_batch
    assert program.args[0] is x
    torch.testing.assert_close(program(x), model(x))


def test_model_on_meta() -> None:
    with torch.device("meta"):
        model = small()
    program = capture(model, torch.randn(2, 3, 8, 8))
    assert program.free_batch
    assert program.tensors()["0.weight"].is_meta
    assert not program.args[0].is_meta


def test_multi_head_attention_with_a_mask() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            out: Tensor = self.attend(x, x, x, attn_mask=mask, need_weights=False)[0]
            return out

    model, mask = Attend().eval().requires_grad_(False), torch.zeros(5, 5)
    program, x = capture(model, (torch.randn(2, 5, 8), mask)), torch.randn(3, 5, 8)
    torch.testing.assert_close(program(x, mask), model(x, mask))


def branch_on_data(x: Tensor) -> Tensor:
    return x + 1 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("model", "args", "said"),
    [
        (small(), None, "no example input"),
        (small(), {"x": torch.ones(1)}, "args is a mapping"),
        (small(), torch.randn(2, 5, 8, 8), "cannot be run"),
        (small(), (torch.randn(2, 3, 8, 8), 1), "does not accept these inputs"),
        (Fn(branch_on_data), torch.randn(2, 4), "depends on the values"),
        (lambda x: x, torch.ones(1), "cannot capture a function"),
    ],
)
def test_errors(model: Any, args: Any, said: str) -> None:
    with pytest.raises(CaptureError, match=said) as caught:
        capture(model, args)
    assert caught.value.do


def test_an_error_names_the_users_line_and_leaves_the_model() -> None:
    model = Fn(branch_on_data).train()
    attributes = dict(vars(model))
    with pytest.raises(CaptureError) as caught:
        capture(model, torch.randn(2, 4))
    assert "test_export.py" in caught.value.where
    assert "branch_on_data" in caught.value.where
    assert dict(vars(model)) == attributes


def test_an_error_of_sizes_names_the_users_sizes() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(small(), torch.randn(2, 5, 8, 8))
    assert "[2, 5, 8, 8]" in caught.value.why


@pytest.mark.parametrize(
    ("function", "exports"),
    [(branch_on_data, 1), (lambda x: x.view(3, 2, 2), 1), (lambda x: object(), 2)],
)
def test_a_second_export_only_where_it_may_help(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[Tensor], Tensor], exports: int
) -> None:
    spy = MagicMock(side_effect=torch.export.export)
    monkeypatch.setattr(torch.export, "export", spy)
    with pytest.raises(CaptureError):
        capture(Fn(function), torch.randn(2, 4))
    assert spy.call_count == exports


@pytest.mark.parametrize("expression", ["Eq(u0, 1)", "Eq(u0, s0)", "Eq(s0, 1)"])
def test_an_error_of_another_line_is_tried_again(expression: str) -> None:
    """The model does need a value, but not where the export failed."""
    error = RuntimeError(f"Could not guard on data-dependent expression {expression}")
    assert at_fixed_batch(Fn(branch_on_data), (torch.randn(2, 4),), {}, error) is None


@pytest.mark.parametrize("key", ["global", "µ", 'a"b'])
def test_a_module_of_any_name_is_captured_pruned_and_copied(key: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({key: nn.Linear(4, 6), "out": nn.Linear(6, 2)})

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["out"](self.parts[key](x).relu())

    program = fp.prune(Named().eval(), x := torch.randn(2, 4)).program
    assert copy.deepcopy(program.module)(x).equal(pickle.loads(pickle.dumps(program.module))(x))
