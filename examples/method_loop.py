"""The training loop of the examples of methods: a classifier shrinks while it trains."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

import fxprune as fp
from fxprune_passes.methods.method import Loss, Method

Batch = tuple[torch.Tensor, torch.Tensor]


def train(
    method: Method, before: fp.Program, make_batch: Callable[[], Batch], epochs: int, steps: int
) -> fp.Program:
    """Trains, prints what the method removes and how the network changes; returns the network for use."""
    history = fp.training.History()
    for _ in range(epochs):
        for _ in range(steps):
            history.step(method.step(_loss_on(*make_batch())))
        for change in method.end_epoch():
            print(change)
        history.end_epoch(method.shrinker.program, **method.numbers())
    program = method.finish_training()
    print(history, fp.compare(before, program, depth=1), sep="\n\n")
    return program


def _loss_on(x: torch.Tensor, y: torch.Tensor) -> Loss:
    return lambda module: cross_entropy(module(x), y)
