"""What a forward does past the operators, so that no record of them shows it.

`tensor.data` becomes a detached tensor, which is the same but for what autograd notices of writing to it. What has
no such counterpart is refused with the line that does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fxprune.capture.failure import calling_line
from fxprune.errors import CaptureError
from fxprune.torch_private import backward_refused

_DATA: Any = torch.Tensor.data


@contextmanager
def untraced_seen(name: str) -> Iterator[None]:
    """Around a run that is recorded: reads of `tensor.data` are recorded, and what cannot be is refused.

    Args:
        name: the class of the model.

    Raises:
        CaptureError: forward sets the data of a tensor, or propagates backward.
    """

    def refuse() -> None:
        raise _refused(
            name,
            "the model computes gradients inside forward",
            "torch.autograd.grad and backward run no operators that a capture could record",
            "capture the network whose gradients are computed, and compute them outside of what is captured; an "
            "autograd Function that does so is kept as a call by capture(..., backward=True)",
        )

    with backward_refused(refuse), _Data(name):
        yield


class _Data(TorchFunctionMode):
    """Detaches where `tensor.data` is read, and refuses where it is set."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func == _DATA.__get__:
            return args[0].detach()
        if func == _DATA.__set__:
            raise _refused(
                self._name,
                "the model replaces the data of a tensor while it runs",
                "a graph of operators cannot give a tensor other memory",
                "write into it, as in w.data.copy_(new) or w.copy_(new) under torch.no_grad(), or compute with the "
                "new tensor",
            )
        return func(*args, **(kwargs or {}))


def _refused(name: str, what: str, why: str, do: str) -> CaptureError:
    line = calling_line()
    return CaptureError(what, where=name + (f" at {line}" if line else ""), why=why, do=do)
