"""Builds the smaller program of a plan; the original program does not change."""

from __future__ import annotations

import copy
from dataclasses import replace

from fxprune.analysis.axes import Axes
from fxprune.graph.gc_pause import without_collection
from fxprune.graph.program import Program, build_module
from fxprune.plan import Plan
from fxprune.shrink.nodes import edit_graph
from fxprune.shrink.tensors import cut, slice_tensors
from fxprune.shrink.values import update_values


@without_collection()
def apply_plan(program: Program, axes: Axes, plan: Plan) -> Program:
    """Returns the smaller program.

    Every parameter and buffer is a new tensor, so that training the result does not affect the original.

    Args:
        program: the program that `axes` and `plan` were made for.
        axes: its labels.
        plan: a plan that was checked against them.
    """
    graph = copy.deepcopy(program.graph)
    update_values(graph, program, axes, plan)
    edit_graph(graph, plan.edits)
    module = build_module(program.module, graph, training=program.training)
    slice_tensors(module, plan.kept)
    return replace(program, module=module, stored=cut(program.stored, plan.kept))
