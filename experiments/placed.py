"""Programs on a device."""

from __future__ import annotations

from dataclasses import replace

import torch

from fxprune.graph.program import Program


def placed(program: Program, device: str | torch.device) -> Program:
    """On a device, with its example inputs.

    Nothing is channels last: that is a third faster with few channels, but on a CPU torch 2.15 writes over foreign
    memory in the backward pass of convolutions whose numbers of channels are no multiples of 8.
    """
    program.module.to(device=device)
    return replace(program, args=tuple(x.to(device) for x in program.args))
