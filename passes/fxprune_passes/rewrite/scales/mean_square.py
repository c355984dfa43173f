"""Lets a norm that divides by the root of a mean square do without positions that are 0."""

from __future__ import annotations

from math import sqrt

import torch
from torch import fx

from fxprune.graph.editor import Editor
from fxprune.graph.operands import get_argument, set_argument
from fxprune.structure.paths import operator
from fxprune_passes.rewrite.effects.ownership import Ownership

mul = torch.ops.aten.mul.Tensor


def is_mean_square(node: fx.Node) -> bool:
    """Whether a node is such a norm."""
    return operator(node) == "rms_norm"


def keep_mean_square(editor: Editor, node: fx.Node, share: float, *, trained: bool) -> None:
    """Changes a norm over the positions that are left so that it divides by what it divided by before.

    The mean square over all positions is that over the rest times `share`; both eps and the result are scaled
    to match. Where eps is the default, which depends on the type, the input is scaled instead.

    Args:
        editor: the editor of the graph.
        node: the norm, without the positions that were 0.
        share: which share of the positions is left.
        trained: whether the weight is in training, so that it must stay what it is.
    """
    eps = get_argument(node, "eps")
    if eps is None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node.replace_input_with(source, editor.call(mul, (source, sqrt(share)), before=node))
    else:
        set_argument(node, "eps", eps / share)
    weight = get_argument(node, "weight")
    if weight is None or trained or Ownership(editor).objection(weight):
        _scale_result(editor, node, 1 / sqrt(share))
    else:
        name = str(weight.target)
        editor.set_tensor(
            name,
            (editor.tensor(name).detach().double() / sqrt(share)).to(editor.tensor(name).dtype),
        )


def _scale_result(editor: Editor, node: fx.Node, factor: float) -> None:
    """Multiplies the result by a number, once, however often this is done."""
    users = list(node.users)
    if len(users) == 1 and users[0].target is mul and isinstance(users[0].args[1], float):
        users[0].update_arg(1, users[0].args[1] * factor)
        return
    editor.replace(node, editor.call(mul, (node, factor), before=node.next, like=node))
