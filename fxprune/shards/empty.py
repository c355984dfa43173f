"""Builds a model on the meta device, and keeps what its constructor works out and no checkpoint has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)
_DRAWN = (torch.empty, torch.empty_strided, torch.rand, torch.randn, torch.randint, torch.normal)


def without_weights(build: Callable[[], M]) -> tuple[M, dict[str, torch.Tensor]]:
    """Builds a model on the meta device, with the numbers of buffers that it does not save.

    `with torch.device("meta")` leaves no buffer with numbers, and those that a model does not save, such as the
    frequencies of rotary positions or masks, are in no checkpoint either. Here only tensors that are drawn at random
    or not filled, as weights are, have no numbers while the model is built.

    Args:
        build: makes the model: `lambda: LlamaForCausalLM(config)`.

    Returns:
        the model, all on the meta device; and buffers that `state_dict()` leaves out, by name, for
        `fp.open_shards(program, folder, tensors=...)`.
    """
    with _DrawnOnMeta():
        model = build()
    saved = model.state_dict().keys()
    buffers = dict(model.named_buffers(remove_duplicate=False))
    kept = {name: b for name, b in buffers.items() if name not in saved and not b.is_meta}
    return model.to("meta"), kept


class _DrawnOnMeta(TorchFunctionMode):
    """Makes tensors that are drawn or not filled on the meta device, where the caller names no other."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in _DRAWN and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)
