"""Every table of the experiments."""

from __future__ import annotations

from experiments.task import Arm, Length, Task

DENSE = Arm("dense")

TASKS: tuple[Task, ...] = (
    Task(
        "MNIST, MLP 784-50-30-10",
        network="MLP 784-50-30-10",
        data="mnist",
        quick=Length(10),
        full=Length(30),
        arms=(DENSE,),
    ),
)
