"""Single weights at 0, held there through training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fxprune.graph.program import Program
from fxprune.training import Shrinker, TrainingError

Tensor = torch.Tensor


class WeightMasks:
    """Sets single weights to 0 and keeps them there, bit by bit, whatever the optimizer does.

    Momentum and moments go on for a masked weight as for any other, and move it in every step; `hold` puts
    it back to 0 behind the step. No gradient changes, and no state of the optimizer.

    Masks follow shrinkings of any kind: between steps a masked weight is exactly 0, so that of a tensor which
    was replaced the mask is read again from its zeros. (A weight that has come to be exactly 0 by itself is
    masked from then on.) Averages of weights are not masked.

    Args:
        shrinker: of the network that trains.
    """

    def __init__(self, shrinker: Shrinker) -> None:
        self._shrinker = shrinker
        self._program: Program | None = None
        self._held: dict[str, tuple[Tensor, Tensor]] = {}

    def prune(self, names: Sequence[str], count: int) -> None:
        """Sets the weights of some tensors that are nearest to 0, taken together, to 0.

        Args:
            names: of the tensors. What is 0 in them already is masked from now on.
            count: how many weights other than 0 go; the first ones of those that are equal.
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
        """Before each step: drops masks of tensors that are gone, reads those of tensors that were replaced."""
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
        """Behind each step of the optimizer: masked weights are exactly 0 again.

        Raises:
            TrainingError: the network was replaced and `follow` not called before the step.
        """
        if self._held and self._shrinker.program is not self._program:
            raise TrainingError(
                "the network is another one than before the step",
                why="masks follow a shrinking by the zeros of the weights, which the step has moved",
                do="shrink between steps; begin() of the method comes before each",
            )
        for tensor, mask in self._held.values():
            tensor.masked_fill_(mask, 0)

    def masks(self) -> dict[str, Tensor]:
        """By name of a tensor which of its weights are held at 0."""
        self.follow()
        return {name: mask for name, (_, mask) in self._held.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, copied."""
        return {name: mask.clone() for name, mask in self.masks().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state_dict` gave.

        Raises:
            TrainingError: the masks are of another network; nothing has changed.
        """
        tensors = self._shrinker.program.tensors()
        for name, mask in state.items():
            if name not in tensors or tensors[name].shape != mask.shape:
                raise TrainingError(
                    f"a mask of shape {list(mask.shape)} for a tensor that is not there",
                    where=name,
                    do="load the program that was saved with the state",
                )
        self._held = {n: (tensors[n], mask.to(tensors[n].device)) for n, mask in state.items()}
        self._program = self._shrinker.program
