"""Every table of the experiments."""

from __future__ import annotations

from experiments.tables import cifar, mnist, transformers
from experiments.task import Task

TASKS: tuple[Task, ...] = (*cifar.TASKS, *transformers.TASKS, *mnist.TASKS)
