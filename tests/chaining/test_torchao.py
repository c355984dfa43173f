"""int8 by torchao: PT2E of graphs, static and dynamic; weights of modules after writing back."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.export import Dim

import fxprune as fp

pytest.importorskip("torchao")


@pytest.mark.parametrize("dynamic", [False, True])
def test_pt2e_loses_no_more_than_on_the_dense_network(network: Any, dynamic: bool) -> None:
    dense, weights = _loss_by_pt2e(network.model, network, dynamic)
    small, fewer = _loss_by_pt2e(network.fresh("small"), network, dynamic)
    assert 0 < fewer <= weights
    assert fewer == weights - _deleted_weights(network)
    assert small <= max(2 * dense, 0.05)


@pytest.mark.parametrize("how", ["quantize_", "quantize_dynamic"])
def test_layers_of_a_model_written_back_are_quantised(costly_network: Any, how: str) -> None:
    # The forward of nn.MultiheadAttention does not run with smaller heads.
    attention = [
        n for n, m in costly_network.model.named_modules() if type(m) is nn.MultiheadAttention
    ]
    outcome = fp.prune(costly_network.model, costly_network.args, keep=0.8, ignore=attention)
    smaller = fp.write_back(costly_network.model, outcome.plan)
    dense = _loss(
        HOW[how](copy.deepcopy(costly_network.model)), costly_network.model, costly_network
    )
    small = _loss(HOW[how](copy.deepcopy(smaller)), smaller, costly_network)
    assert 0 < small <= max(2 * dense, 0.05)


@pytest.mark.parametrize("how", ["quantize_", "quantize_dynamic"])
def test_a_graph_holds_no_layers_to_quantise(costly_network: Any, how: str) -> None:
    """Both look for nn.Linear, and say nothing where there is none: see docs/chaining.md."""
    module = costly_network.fresh("small")
    assert _loss(HOW[how](module), costly_network.small.module, costly_network) == 0


def _by_quantize(model: nn.Module) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def _by_quantize_dynamic(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        quantize: Any = torch.ao.quantization.quantize_dynamic
        return quantize(model, {nn.Linear}, dtype=torch.qint8)


HOW: dict[str, Callable[[nn.Module], nn.Module]] = {
    "quantize_": _by_quantize,
    "quantize_dynamic": _by_quantize_dynamic,
}


def _loss_by_pt2e(module: nn.Module, network: Any, dynamic: bool) -> tuple[float, int]:
    """The relative error that int8 brings, and how many weights are int8."""
    with torch.no_grad():
        converted = _pt2e(module, network, dynamic)
    weights = sum(b.dtype == torch.int8 for b in converted.buffers())
    return _loss(converted, module, network), weights


def _pt2e(module: nn.Module, network: Any, dynamic: bool) -> fx.GraphModule:
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    exported = torch.export.export(module, network.args, dynamic_shapes=({0: Dim.AUTO},)).module(
        check_guards=False
    )
    _tell_calls_apart(exported.graph)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
    prepared = quantize_pt2e.prepare_pt2e(exported, quantizer)
    for size in (8, 9, 10, 11):
        prepared(network.batch(size))
    return quantize_pt2e.convert_pt2e(prepared)


def _tell_calls_apart(graph: fx.Graph) -> None:
    """torchao takes two calls of one module (a ReLU used twice) for one pattern, and fails."""
    for node in graph.nodes:
        if node.target not in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default):
            continue
        stack = dict(node.meta["nn_module_stack"])
        key, (_, kind) = stack.popitem()
        node.meta["nn_module_stack"] = {**stack, key: (node.name, kind)}


def _loss(quantised: nn.Module, exact: nn.Module, network: Any) -> float:
    x = network.batch(32)
    with torch.no_grad():
        wanted = exact(x)
        return float((quantised(x) - wanted).norm() / wanted.norm())


def _deleted_weights(network: Any) -> int:
    """How many layers went of those that torchao looks for; those inside attention are not."""
    left = network.small.tensors()
    names = [n for n, m in network.model.named_modules() if type(m) in (nn.Linear, nn.Conv2d)]
    return sum(f"{name}.weight" not in left for name in names)
