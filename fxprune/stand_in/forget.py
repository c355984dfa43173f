"""Has modules forget what they keep of a forward, as the biases of attention that LeViT looks up once in eval mode.

A class that keeps such tensors says itself when they are of no use any more: it drops them in `train()`.
"""

from __future__ import annotations

import torch
from torch import nn


def forget(model: nn.Module) -> None:
    """Drops the tensors that modules keep in attributes and that their own `train()` drops; modes stay.

    Only modules that keep tensors are asked, for `train()` may do other things elsewhere, such as merging weights.

    Args:
        model: to change: a copy, or one that is about to be changed.
    """
    for module in model.modules():
        if type(module).train is nn.Module.train or not _keeps_tensors(module):
            continue
        modes = {m: m.training for m in module.modules()}
        try:
            module.train()
        except Exception:  # code of the user's: what it keeps is then a constant of the network
            continue
        finally:
            for inner, training in modes.items():
                inner.training = training


def _keeps_tensors(module: nn.Module) -> bool:
    """Whether there are tensors in the attributes of a module, or right in containers there, besides its own."""
    own = ("_parameters", "_buffers")
    for x in (v for name, v in vars(module).items() if name not in own):
        held = x.values() if type(x) is dict else x if type(x) in (list, tuple) else (x,)
        if any(type(v) is torch.Tensor for v in held):
            return True
    return False
