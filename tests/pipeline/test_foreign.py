"""Both ways with torch.fx."""

from __future__ import annotations

import operator
import pickle
from dataclasses import MISSING
from typing import Any, cast

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager
from torch.fx.passes.shape_prop import ShapeProp

import fxprune as fp
from fxprune.errors import CaptureError, PipelineError
from fxprune.graph.gate import Gate
from fxprune.graph.program import Program
from fxprune.pipeline import Context, Pass, Rewrite
from fxprune.pipeline.foreign import FxPass
from fxprune.pipeline.kinds import option_fields
from fxprune.pipeline.registry import find_pass, installed

X = (torch.randn(2, 4),)


def relu_twice(module: fx.GraphModule) -> None:
    """Changes its argument: relu(relu(x)) is relu(x)."""
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten.relu.default:
            with module.graph.inserting_after(node):
                again = module.graph.call_function(torch.ops.aten.relu.default, (node,))
            node.replace_all_uses_with(
                again, delete_user_cb=lambda user, new=again: user is not new
            )
    module.recompile()


def python_operator(module: fx.GraphModule) -> fx.GraphModule:
    """Adds a call that is no operator: the result is captured again."""
    (output,) = module.graph.find_nodes(op="output")
    source = output.all_input_nodes[0]
    with module.graph.inserting_before(output):
        added = module.graph.call_function(operator.add, (source, 0))
    output.replace_input_with(source, added)
    module.recompile()
    return module


def with_modules(module: fx.GraphModule) -> nn.Module:
    """Returns another module, of call_module nodes."""
    whole = nn.Sequential(nn.Identity(), module)
    return fx.GraphModule(whole, _two_calls())


def _two_calls() -> fx.Graph:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_module("1", (graph.call_module("0", (x,)),)))
    return graph


def doubles_weights(module: fx.GraphModule) -> fx.GraphModule:
    """Mutates weights in place."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data.mul_(2)
    return module


def nothing(module: fx.GraphModule) -> PassResult:
    """Says that it changed something, and did not."""
    return PassResult(module, True)


def text(module: fx.GraphModule) -> str:
    """Returns no module."""
    return module.code


class NoDropout(PassBase):
    """A pass of torch's own kind."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        found = [n for n in graph_module.graph.nodes if "dropout" in str(n.target)]
        for node in found:
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
        graph_module.recompile()
        return PassResult(graph_module, bool(found))


@pytest.mark.parametrize("function", [relu_twice, python_operator, with_modules, NoDropout()])
def test_a_pass_of_torch_runs_verified(small: nn.Module, function: Any) -> None:
    result = fp.run(small, X, function)
    assert result.changed
    assert result.steps[0].checks
    assert torch.equal(result.program(*X), small(*X))
    assert all("val" in n.meta for n in result.program.nodes if n.op != "output")
    result.program(torch.randn(5, 4))


def test_what_weights_it_mutates_are_a_copy(small: nn.Module) -> None:
    before = {k: v.clone() for k, v in small.state_dict().items()}
    with pytest.raises(PipelineError, match="differs from the program before"):
        fp.run(small, X, doubles_weights)
    assert all(torch.equal(before[k], v) for k, v in small.state_dict().items())
    result = fp.run(small, X, fp.fx_pass(doubles_weights, changes=True))
    assert torch.equal(result.program.tensors()["0.bias"], 2 * small.state_dict()["0.bias"])
    assert all(torch.equal(before[k], v) for k, v in small.state_dict().items())


def test_whether_something_changed_is_compared_not_believed(small: nn.Module) -> None:
    result = fp.run(small, X, nothing)
    assert not result.changed
    assert [r.code for r in result.remarks] == ["fx.unchanged"]


def test_a_pass_must_return_a_module(small: nn.Module) -> None:
    with pytest.raises(PipelineError, match="returned a str"):
        fp.run(small, X, text)


def test_no_pass_of_torch_runs_beyond_the_limit(small: nn.Module) -> None:
    assert not fp.run(small, X, relu_twice, limit=0).changed


def test_a_function_is_named_in_text(small: nn.Module) -> None:
    one = fp.fx_pass(torch.fx.passes.shape_prop.ShapeProp)
    assert one.call == "torch.fx.passes.shape_prop:ShapeProp"
    parsed = fp.Pipeline.parse("fx{call=json:loads}")
    assert parsed == fp.Pipeline([FxPass("json:loads")])
    with pytest.raises(PipelineError, match="there is no function json:load_s"):
        fp.run(small, X, "fx{call=json:load_s}")


def gated() -> Program:
    program = fp.capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), X)
    editor = Context().edit(program)
    (relu,) = (n for n in editor.nodes if "relu" in n.name)
    path = editor.add_leaf("gate", Gate(4, kind="soft"))
    node = editor.call_leaf(path, (relu.args[0], 1), before=relu)
    relu.args = (node,)
    return editor.finish()


def test_gates_stay_gates_where_the_graph_stays_one_of_operators() -> None:
    result = fp.run(gated(), None, relu_twice)
    assert [n.target for n in result.program.graph.find_nodes(op="call_module")] == ["gate"]
    assert result.program.module.get_submodule("gate").kind == "soft"


def test_gates_that_are_captured_again_are_remarked_on() -> None:
    result = fp.run(gated(), None, python_operator)
    assert [r.code for r in result.remarks] == ["fx.ran", "fx.gates-inlined"]


def drop_identity() -> Rewrite:
    return cast(Rewrite, find_pass("drop-identity")())


def test_our_pass_runs_in_torchs_manager(small: nn.Module) -> None:
    program = fp.capture(small, X)
    result = PassManager(passes=[drop_identity(), drop_identity()])(program.module)
    assert result.modified
    assert torch.equal(result.graph_module(*X), small(*X))
    result.graph_module(torch.randn(5, 4))


def rewrites() -> list[type[Pass]]:
    """The installed rewrites whose options have defaults."""
    found = [find_pass(p.name) for p in installed() if p.kind == "rewrite" and p.name != "fx"]
    return [c for c in found if all(f.default is not MISSING for f in option_fields(c))]


@pytest.mark.parametrize("kind", rewrites(), ids=lambda kind: kind.name)
def test_every_rewrite_runs_in_torchs_manager(small: nn.Module, kind: type[Rewrite]) -> None:
    module = fx.symbolic_trace(small)
    ShapeProp(module).propagate(*X)
    result = PassManager(passes=[kind()])(module)
    if kind().keeps == "function":
        torch.testing.assert_close(result.graph_module(*X), small(*X))


def test_an_unpickled_module_is_captured_again(small: nn.Module) -> None:
    module = pickle.loads(pickle.dumps(fp.capture(small, X).module))
    ShapeProp(module).propagate(*X)
    result = drop_identity()(module)
    assert torch.equal(result.graph_module(*X), small(*X))


def test_our_pass_is_a_function_of_a_traced_module(small: nn.Module) -> None:
    module = fx.symbolic_trace(small)
    ShapeProp(module).propagate(*X)
    result = drop_identity()(module)
    assert result.modified
    assert not any("dropout" in str(n.target) for n in result.graph_module.graph.nodes)
    assert torch.equal(result.graph_module(*X), small(*X))
    again = drop_identity()(result.graph_module)
    assert not again.modified
    assert again.graph_module is result.graph_module


def test_without_example_values_the_error_says_what_to_do(small: nn.Module) -> None:
    with pytest.raises(CaptureError, match="does not say what its inputs look like") as caught:
        drop_identity()(fx.symbolic_trace(small))
    assert "ShapeProp" in caught.value.do
    assert caught.value.where == "Sequential: input_1"
