"""The dense network that a run starts from: the same weights for every arm of a seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fxprune as fp
from experiments.networks import NETWORKS
from experiments.placed import placed
from experiments.task import Arm, Task
from fxprune.graph.program import Program
from fxprune.pipeline import run_pipeline


def start(task: Task, arm: Arm, seed: int, inputs: Any, device: str) -> Program:
    """The dense network with the weights of the seed, captured with example inputs."""
    program = fp.capture(model(task, arm, seed).to(device), inputs)
    if task.prepare:
        program = run_pipeline(program, task.prepare, seed=seed).program
    return placed(program, device)


def model(task: Task, arm: Arm, seed: int) -> nn.Module:
    """The same as a model of torch."""
    torch.manual_seed(seed)
    return NETWORKS[arm.network or task.network]().train()
