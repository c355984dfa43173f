"""The modules that hold the statistics of a graph's batch norms, so that tools of torch find them.

`torch.optim.swa_utils.update_bn` looks for batch norms among the modules, resets their statistics and sets their
momentum to None, which asks for the mean over all batches. In a graph, batch norms are calls.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.graph.mode import MODE
from fxprune.graph.operands import get_argument, set_argument

_MOMENTUM = (
    "fxprune_momentum"  # what the graph has for it, while it computes the mean over all batches
)
_COUNTER = "num_batches_tracked"


class BatchStatistics(_BatchNorm):
    """Weights and statistics of a batch norm that the graph around it calls."""

    def __init__(self, momentum: float | None, graph_module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.affine = self.track_running_stats = True
        self._momentum, self._around = momentum, ref(graph_module)

    @property
    def momentum(self) -> float | None:
        """None asks for the mean over all batches since the statistics were reset."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        self._momentum = value
        if (around := self._around()) is not None:
            around.momenta_changed = True  # type: ignore[assignment]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_around": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_around": lambda: None})  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Nothing that would name sizes."""
        return ""


def name_batch_norms(module: nn.Module, graph: fx.Graph) -> None:
    """Makes the modules that hold the statistics of the graph's batch norms recognisable as what they are."""
    for node in _batch_norms(graph):
        path = _owner(node)
        owner = module.get_submodule(path) if path else None
        if type(owner) is not nn.Module or owner._buffers.get(_COUNTER) is None:
            continue
        found = BatchStatistics(_momentum(node), module)
        for store in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            setattr(found, store, getattr(owner, store))
        parent, _, name = path.rpartition(".")
        module.get_submodule(parent)._modules[name] = found


def follow_momentum(module: fx.GraphModule, training: bool) -> bool:
    """Lets batch norms compute the mean over all batches where the module that holds their statistics asks for it.

    Returns:
        Whether the graph changed; the caller must recompile it in that case.
    """
    changed = False
    for node in _batch_norms(module.graph):
        path = _owner(node)
        owner = module.get_submodule(path)
        asked = training and isinstance(owner, BatchStatistics) and owner.momentum is None
        counter = _counter(node, f"{path}.{_COUNTER}")
        if asked and counter is not None and _MOMENTUM not in node.meta:
            node.meta[_MOMENTUM] = _momentum(node)
            with module.graph.inserting_before(node):
                mean = module.graph.call_function(share_of_last, (counter,))
            set_argument(node, "momentum", mean)
            changed = True
        elif not asked and _MOMENTUM in node.meta:
            mean = get_argument(node, "momentum")
            set_argument(node, "momentum", node.meta.pop(_MOMENTUM))
            count = mean.args[0]
            module.graph.erase_node(mean)
            if count.op == "get_attr" and not count.users:  # eval mode counts nothing
                module.graph.erase_node(count)
            changed = True
    return changed


def share_of_last(counter: torch.Tensor) -> float:
    """The weight of the last of so many batches in their mean."""
    return 1 / float(counter)


def _batch_norms(graph: fx.Graph) -> list[fx.Node]:
    found = graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    return [n for n in found if MODE in n.meta and _owner(n)]


def _owner(node: fx.Node) -> str:
    """The path of the module that holds the running mean; "" where it is no buffer of a submodule."""
    mean: Any = get_argument(node, "running_mean")
    if not isinstance(mean, fx.Node) or mean.op != "get_attr":
        return ""
    return str(mean.target).rpartition(".")[0]


def _momentum(node: fx.Node) -> Any:
    return get_argument(node, "momentum")


def _counter(norm: fx.Node, name: str) -> fx.Node | None:
    """How many batches a norm has seen with this one; None in eval mode, in which nothing is counted."""
    added = norm.graph.find_nodes(op="call_function", target=torch.ops.aten.add_.Tensor)
    return next((n for n in reversed(added) if n < norm and _counted(n) == name), None)


def _counted(node: fx.Node) -> str:
    """The name of the tensor that a chain of additions in place counts in."""
    while node.target is torch.ops.aten.add_.Tensor and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return str(node.target)
