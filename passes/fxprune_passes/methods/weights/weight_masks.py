"""Keeps individual weights at 0 during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fxprune.graph.program import Program
from fxprune.training import Shrinker, TrainingError

Tensor = torch.Tensor


class WeightMasks:
    """Sets individual weights to 0 and keeps them at exactly 0, whatever the optimizer does.

    The optimizer updates a masked weight like any other, including its momentum and moments; `hold` resets it
    to 0 after each step. Neither gradients nor the state of the optimizer are changed.

    Masks survive every kind of shrinking: between steps a masked weight is exactly 0, so the mask of a tensor
    that was replaced is read from the zeros of the new one. (A weight that happens to become exactly 0 is
    masked from then on.) Averages of weights are not masked.

    Args:
        shrinker: the shrinker of the network in training.
    """

    def __init__(self, shrinker: Shrinker) -> None:
        self._shrinker = shrinker
        self._program: Program | None = None
        self._held: dict[str, tuple[Tensor, Tensor]] = {}

    def prune(self, names: Sequence[str], count: int) -> None:
        """Sets the smallest weights of some tensors, compared across all of them, to 0.

        Args:
            names: the names of the tensors. Weights that are already 0 are masked from now on.
            count: how many nonzero weights are set to 0; of equal ones the first.
        """
        self.follow()
        tensors = self._shrinker.program.tensors()
        weights = [tensors[name].detach() for name in names]
        sizes = torch.cat([w.abs().flatten().float() for w in weights])
        sizes[torch.cat([w.flatten() == 0 for w in weights])] = torch.inf
        gone = torch.zeros_like(sizes, dtype=torch.bool)
        gone[sizes.sort(stable=True).indices[:count]] = True
        parts = torch.split(gone, [w.numel() for w in weights])
        for name, weight, part in zip(names, weights, parts, strict=True):
            weight.masked_fill_(part.view_as(weight), 0)
            self._held[name] = tensors[name], weight == 0

    def follow(self) -> None:
        """Runs before each step: drops the masks of removed tensors and rereads those of replaced tensors.

        Raises:
            TrainingError: the network is sharded.
        """
        if self._shrinker.is_sharded:
            raise TrainingError(
                "single weights of a sharded network cannot be masked",
                why="the smallest weights are sorted over whole layers, and each process holds a part of each",
                do="train with DistributedDataParallel, where each process holds the whole network",
            )
        program = self._shrinker.program
        if program is self._program:
            return
        tensors, self._program = program.tensors(), program
        for name, (old, _) in list(self._held.items()):
            new = tensors.get(name)
            if new is None:
                del self._held[name]
            elif new is not old:
                self._held[name] = new, new.detach() == 0

    @torch.no_grad()
    def hold(self) -> None:
        """Runs after each step of the optimizer: resets masked weights to exactly 0.

        Raises:
            TrainingError: the network was replaced and `follow` was not called before the step.
        """
        if self._held and self._shrinker.program is not self._program:
            raise TrainingError(
                "the network was replaced during a step",
                why="after a shrinking the masks are read from the zeros of the weights, which the step has changed",
                do="shrink between steps, and call begin() of the method before each step",
            )
        for tensor, mask in self._held.values():
            tensor.masked_fill_(mask, 0)

    def masks(self) -> dict[str, Tensor]:
        """The mask of each tensor by its name: which of its weights are kept at 0."""
        self.follow()
        return {name: mask for name, (_, mask) in self._held.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the masks."""
        return {name: mask.clone() for name, mask in self.masks().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores a state from `state_dict`.

        Raises:
            TrainingError: the masks belong to another network; nothing has changed.
        """
        tensors = self._shrinker.program.tensors()
        for name, mask in state.items():
            if name not in tensors or tensors[name].shape != mask.shape:
                raise TrainingError(
                    f"the network has no tensor of shape {list(mask.shape)} for this mask",
                    where=name,
                    do="load the program that was saved with the state",
                )
        self._held = {n: (tensors[n], mask.to(tensors[n].device)) for n, mask in state.items()}
        self._program = self._shrinker.program
