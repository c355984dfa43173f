"""Tests of fxprune.torch_private, which say what each private name of torch is for."""

import copy
import inspect
import logging
import warnings
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from fxprune.torch_private import (
    SIZE_FUNCTIONS,
    BackwardHookFunction,
    FreeSizes,
    WithoutData,
    attribute_access,
    backward_refused,
    every_call,
    fake_mode_of,
    function_modes_kept,
    has_hooks,
    in_autocast,
    input_codegen,
    is_watched,
    pytree_specs,
    size_code,
    size_key,
    static_size,
    storage_id,
    told_sizes,
    unlogged_failures,
    unrecorded,
    untraced_files,
    with_data,
    without_out,
)


class Shapes(nn.Module):
    """Adds its input to its weight and notes the sizes and the number that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.seen: list[object] = []

    def forward(self, x: Tensor, size: int) -> Tensor:
        self.seen += [tuple(x.shape), x.stride(), size]
        return x + self.weight


def test_free_sizes_of_a_trace_stand_at_the_examples() -> None:
    """Inputs noted while torch.export runs have symbols for sizes, which mean nothing outside it."""
    batch = ({0: torch.export.Dim.AUTO},)
    graph = torch.export.export(nn.ReLU(), (torch.randn(3, 4),), dynamic_shapes=batch).graph
    (node,) = graph.find_nodes(op="placeholder")
    given, model = node.meta["val"], Shapes()
    assert not isinstance(given.shape[0], int)
    inputs = pytree.tree_flatten(((given, given.shape[0]), {}))
    result = WithoutData(model, *inputs)()
    assert model.seen == [(3, 4), (4, 1), 3]
    assert all(type(n) is int for n in (*result.shape, model.seen[-1]))
    assert model.weight.equal(torch.ones(4))


def test_a_graph_knows_how_its_inputs_and_outputs_are_nested() -> None:
    """torch.fx keeps this with its code generator, and has no public way to read it."""
    exported = torch.export.export(Nested(), ({"a": torch.ones(2), "b": torch.ones(2)},))
    specs = pytree_specs(exported.module().graph)
    assert specs is not None
    assert specs[0].num_leaves == 2
    assert pytree.tree_unflatten([1, 2], specs[1]) == [1, (2,)]
    assert pytree_specs(torch.fx.symbolic_trace(nn.ReLU()).graph) is None


class Nested(nn.Module):
    def forward(self, x: dict[str, Tensor]) -> list[object]:
        return [x["a"] + 1, (x["b"] * 2,)]


def test_every_call_of_an_operator_is_told_before_it_is_decomposed() -> None:
    """make_fx's own mode is the only one that torch lets stand before autograd."""
    told: list[str] = []
    free = FreeSizes()
    conv, x = nn.Conv2d(3, 4, 1), torch.ones(2, 3, 4, 4)
    for p in conv.parameters():
        p.requires_grad_(False)
    weight, given = free.static(conv.weight.detach()), free.static(x)

    def tell(op: object, args: object, kwargs: object, result: Tensor) -> None:
        told.append(str(op))

    with free.mode, every_call(tell, autograd=True):
        assert torch.compiler.is_exporting()
        result = torch.nn.functional.conv2d(given, weight).relu_()
    assert told == ["aten.conv2d.default", "aten.relu_.default"]
    assert result.shape == (2, 4, 4, 4)
    assert not torch.compiler.is_exporting()
    nn.functional.relu(x)
    assert len(told) == 2


def test_backward_is_refused_where_operators_are_recorded() -> None:
    """All of autograd's functions call one engine, which torch does not let one replace."""
    free, refused = FreeSizes(), list[int]()
    x = free.static(torch.ones(2)).requires_grad_()
    with backward_refused(lambda: refused.append(1)), free.mode:
        torch.autograd.grad((x * x).sum(), x)
        assert not refused
        with every_call(lambda *_: None, autograd=True):
            torch.autograd.grad((x * x).sum(), x)
    assert refused == [1]
    torch.autograd.grad((x * x).sum(), x)
    assert refused == [1]


def test_a_free_size_is_the_symbol_that_an_export_makes() -> None:
    """torch makes tensors of symbolic sizes without a trace only in its own code."""
    free = FreeSizes()
    size = free.number(free.symbol("input", 0, 2), 2)
    exported = torch.export.export(
        nn.Linear(3, 4), (torch.ones(2, 3),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    (x,) = (n for n in exported.graph.nodes if n.name == "input")
    given = free.resized(torch.ones(2, 3), {0: size})
    assert str(given.shape) == str(x.meta["val"].shape)
    assert static_size(given.shape[0]) is None
    assert static_size(given.shape[1]) == 3
    twice = free.number(2 * free.symbol("input", 0, 2), 4)
    assert bool(twice == 2 * given.shape[0])
    flat = free.tensor((twice, 3), (3, 1), torch.float32, given.device)
    assert fake_mode_of(flat) is fake_mode_of(given) is free.mode
    assert bool(flat.shape[0] == twice)
    assert free.resized(torch.ones(2, 3), {1: 7}).stride() == (7, 1)
    assert bool(free.condition(sympy.Eq(free.symbol("input", 0, 2), 2)))


def test_python_code_is_told_other_sizes_than_operators() -> None:
    """torch has no hook where a shape is read."""
    free = FreeSizes()
    x, seen = free.static(torch.ones(2, 3)), list[Any]()

    def tell(_x: Tensor, sizes: torch.Size) -> torch.Size:
        return torch.Size((*sizes[:-1], 30))

    def note(_x: Tensor, key: object) -> None:
        seen.append(key)

    read, calls = list[object](), list[object]()
    with (
        free.mode,
        told_sizes(tell, note, seen.append),
        every_call(lambda op, *_: calls.append(op), autograd=True),
    ):
        read += [x.shape, x.size(), x.size(1), x.numel(), len(x)]
        y = x[:, 1:].reshape(4)
    assert read == [(2, 30), (2, 30), 30, 60, 2]
    ((key), ((_, *given), more), end) = seen
    assert (key, given, more, end) == ((slice(None), slice(1, None)), [4], {}, None)
    assert (x.shape, y.shape) == ((2, 3), (4,))
    assert calls


def test_sizes_become_python_code() -> None:
    """torch prints them for its own guards."""
    s = sympy.Symbol("s0", integer=True, positive=True)
    floor, remainder = SIZE_FUNCTIONS["FloorDiv"], SIZE_FUNCTIONS["PythonMod"]
    assert size_code(sympy.Eq(2 * floor(s, 2), s), {"s0": "n"}) == "(2*(n // 2)) == n"
    assert size_code(sympy.Ne(remainder(s, 4), 0), {"s0": "n"}) == "(n % 4) != 0"
    assert size_code(s + 1, {}) is None


def test_tensors_of_one_memory_share_a_number() -> None:
    """Tensors without data have no address to compare."""
    x = FreeSizes().static(torch.ones(2, 3))
    assert storage_id(x) == storage_id(x.view(6)) != storage_id(x.clone())


def test_the_code_of_a_graph_can_nest_its_inputs() -> None:
    """torch.fx has no public way to say it."""
    _, spec = pytree.tree_flatten(((1,), {}))
    graph = torch.fx.Graph()
    graph.output((graph.placeholder("x"),))
    graph.set_codegen(input_codegen(["x"], spec, pytree.tree_flatten([1])[1]))
    assert torch.fx.GraphModule(nn.Module(), graph)(5) == [5]
    assert pytree_specs(graph) is not None


def test_frames_of_torch_that_an_export_leaves_out_are_known() -> None:
    assert any(name.endswith("fake_tensor.py") for name in untraced_files())


def test_what_fails_without_data_is_raised_and_not_printed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """torch logs it as an error first, a page long, although it may be expected."""
    free = FreeSizes()
    two, three = free.static(torch.ones(2)), free.static(torch.ones(3))

    def add() -> None:
        with free.mode, pytest.raises(RuntimeError):
            torch.add(two, three)

    with unlogged_failures():
        add()
    assert not _errors(caplog)
    add()
    assert _errors(caplog)


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.name for r in caplog.records if r.levelno >= logging.ERROR]


def test_autocast_is_seen_on_every_kind_of_device() -> None:
    """torch.is_autocast_enabled asks for one."""
    assert not in_autocast()
    for device in ("cpu", "cuda"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.autocast(device, torch.bfloat16):
                assert in_autocast() == torch.is_autocast_enabled(device)


@pytest.mark.parametrize("key", ["global", "None", 'a"b', "a\\b", "µ", "a b", "0", "plain"])
def test_the_code_of_a_graph_reads_modules_of_any_name(key: str) -> None:
    """torch.fx writes a name that is a keyword behind a dot, and cuts a name at its quotes."""
    owner = nn.ModuleDict({key: nn.Linear(2, 2)})
    assert eval(attribute_access("owner", f"{key}.weight"), {"owner": owner}) is owner[key].weight
    graph = torch.fx.Graph()
    graph.output(graph.get_attr(f"{key}.weight"))
    assert copy.deepcopy(torch.fx.GraphModule(owner, graph))().equal(owner[key].weight)


def test_the_code_of_a_graph_calls_overloads_of_any_name() -> None:
    graph, drawn = torch.fx.Graph(), getattr(torch.ops.aten.random, "from")
    value = graph.placeholder("x")
    graph.output(graph.call_function(drawn, (value, 3, 4)))
    assert torch.fx.GraphModule(nn.Module(), graph)(torch.zeros(2)).tolist() == [3, 3]


def test_an_operator_with_out_has_a_twin_without() -> None:
    """The public schema of an operator does not name the overload that returns what it writes."""
    aten = torch.ops.aten
    assert without_out(aten.div.out) is aten.div.Tensor
    assert without_out(aten.mv.out) is aten.mv.default
    assert without_out(aten.sum.IntList_out) is aten.sum.dim_IntList
    assert without_out(aten.topk.values) is None
    assert without_out(aten.add_.Tensor) is None


def test_a_full_backward_hook_calls_an_autograd_function() -> None:
    """A hook must be told from the custom Functions of a model, and has no public mark."""
    x, module = torch.ones(2, requires_grad=True), nn.ReLU()
    module.register_full_backward_hook(lambda *_: None)
    assert type(module(x).grad_fn).__name__ == f"{BackwardHookFunction.__name__}Backward"


def test_a_record_can_be_left_for_a_moment() -> None:
    """What a custom Function does is tried out on numbers while the model runs without."""
    seen: list[str] = []
    x, free = torch.ones(2), FreeSizes()
    with free.mode, every_call(lambda op, *_: seen.append(op._opname), autograd=True):
        empty = free.static(x).relu()
        with unrecorded():
            assert fake_mode_of(empty.neg()) is free.mode
        with with_data():
            assert x.neg().tolist() == [-1, -1]
    assert seen == ["relu"]


def test_the_default_device_is_a_mode_that_can_be_put_back() -> None:
    """torch.set_default_device leaves its mode at the bottom of a stack, and the one before nowhere."""
    torch.set_default_device("meta")
    try:
        with function_modes_kept():
            torch.set_default_device(None)
            torch.device("cpu").__enter__()
        assert torch.empty(1).is_meta
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    assert torch.empty(1).device == torch.get_default_device() == torch.device("cpu")


def test_aotinductor_writes_and_reads_packages_by_path() -> None:
    """AOTInductor has no public name; tests/chaining and tests/cli compile with it, which takes a minute."""
    for function, name in (
        (torch._inductor.aoti_compile_and_package, "package_path"),
        (torch._inductor.aoti_load_package, "path"),
    ):
        assert name in inspect.signature(function).parameters


def test_what_sees_the_calls_of_a_forward_is_known() -> None:
    """A branch may only be left out where nobody records the calls; torch has no public way to ask."""
    seen: list[bool] = []

    def note(x: Tensor) -> Tensor:
        seen.append(is_watched(x))
        return 2 * x

    x = torch.ones(2)
    note(x)
    with FlopCounterMode(display=False):
        note(x)
    with torch.device("cpu"):
        note(x)
    torch.func.grad(lambda y: note(y).sum())(x)
    torch.fx.symbolic_trace(note)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(note, x, check_trace=False)  # type: ignore[no-untyped-call]
    note(x)
    assert seen == [False, True, True, True, True, True, False]


@pytest.mark.parametrize(
    "register",
    [
        nn.Module.register_forward_hook,
        nn.Module.register_forward_pre_hook,
        nn.Module.register_full_backward_hook,
        nn.Module.register_full_backward_pre_hook,
    ],
)
def test_hooks_of_a_module_are_known(register: Any) -> None:
    """A module that is not called does not call its hooks; torch keeps them in private dictionaries."""
    module = nn.ReLU()
    assert not has_hooks(module)
    hook = register(module, lambda *_: None)
    assert has_hooks(module)
    hook.remove()
    assert not has_hooks(module)


def test_sizes_are_told_apart_without_printing_them() -> None:
    """Printing the expression of a size takes most of the time of a shrink; torch has no public way to it."""
    free = FreeSizes()
    n, m = (free.number(free.symbol(name, 0, 6), 6) for name in ("n", "m"))
    assert size_key(n) == size_key(n * 2 - n)
    assert size_key(n) != size_key(m)
    assert size_key(n + 1) != size_key(n)
    assert size_key(4) == 4
