"""The cost of a program before and after a removal: multiply-accumulates, parameters and bytes."""

from fxprune.cost.bytes import byte_terms, tensor_bytes
from fxprune.cost.macs import mac_terms, node_macs
from fxprune.cost.metric import Metric, cost_of
from fxprune.cost.terms import Cost, Term, param_terms

__all__ = [
    "Cost",
    "Metric",
    "Term",
    "byte_terms",
    "cost_of",
    "mac_terms",
    "node_macs",
    "param_terms",
    "tensor_bytes",
]
