"""Entropy-guided pruning: weights go where activations are nearly linear, until whole layers are, and then these."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fxprune.observe import observers
from fxprune.pipeline import Context, Keeps, Rewrite
from fxprune.program import Program
from fxprune.training import Change, Shrinker, TrainingError
from fxprune_passes.methods.measure import Measure, in_eval_mode
from fxprune_passes.methods.method import Loss, Method
from fxprune_passes.methods.packed_program import pack_program, unpack_program
from fxprune_passes.methods.weight_budgets import (
    EntropyLayer,
    find_entropy_layers,
    irrelevance_ratios,
    split_budget,
)
from fxprune_passes.methods.weight_masks import WeightMasks
from fxprune_passes.rewrite.dead_units import DeadUnitsSeen
from fxprune_passes.rewrite.linearize import Linearize


class EntropyGuided(Method):
    """Prunes weights where the entropy of activations is low, and takes out layers that became linear.

    After "Can Unstructured Pruning Reduce the Depth in Deep Neural Networks?" (arXiv 2308.06619); with
    `zeta=None` after EASIER, which prunes no weights. Read from descriptions of these papers
    (**reconstruction**); the authors' numbers are not claimed.

    With p the fraction of the pre-activations of neuron i of layer l that are above 0, over the samples
    and positions of an epoch, its entropy in bits is

        H_i = -p log2 p - (1 - p) log2 (1 - p)

    A rectifier with H_i = 0 for all neurons is linear on the data seen. H_l is the mean over the neurons with
    0 < p < 1. With W_l the weights before the activation (`find_entropy_layers`), each round takes

        I_l = H_l * mean of |w| over the w in W_l that are not 0       irrelevance
        R_l = sum_k I_k / I_l                                          infinite where I_l is 0
        m_l = zeta * sum_k |W_k|_0 * softmax(R)_l                      capped; the excess goes to the others

    weights: the m_l smallest |w| of W_l go to 0 and stay there. The softmax of such ratios is sharp, and a layer
    may lose all of its weights; with no shortcut around it that cuts the network in two. `most` bounds what one
    round takes of a layer.

    A round is `epochs_per_round` epochs; activations are counted in the steps of the last one, never in an
    evaluation. Behind it, before weights go, `linearize` takes out what was linear on the data of that epoch: an
    activation always on becomes the identity, one always off 0, the off units of a mixed one go;
    `dead-units-seen` takes other units that were never on. Other data might have turned them on. GELU and SiLU
    are counted by sign and are never exactly linear: they go with `eps`, where the loss allows it, or
    with `zeta=None`.

    With `zeta=None` the activation of the lowest entropy becomes the identity behind each round, until the
    accuracy has fallen: a round whose accuracy is more than `delta` below the best one so far ends the method.
    `done` is true then, nothing changes any more, and `good` is a copy of the last program that had not
    fallen. `evaluate` ends a method that prunes weights in the same way.

    A norm in train mode is not affine: layers around an identity are fused in `finish_training`.

    Args:
        shrinker: of the network that trains; observers are put into it.
        zeta: share of the weights left that each round removes; None: entropy only.
        epochs_per_round: epochs of training for each round.
        every: count in every n-th step only; what is always on or off is then known less well.
        most: largest share of a layer's weights that one round takes.
        eps: entropy in bits below which an activation that is not linear may go; needs `loss`.
        loss: gives the loss of a module in eval mode on data of yours.
        rise: by how much that loss may rise in a round.
        evaluate: gives the accuracy of a module in eval mode; needed for `zeta=None`.
        delta: by how much the accuracy may fall.
        fuse: fuse linear layers between rounds too; their states in the optimizer start anew.
        plain_mean: H_l as the mean over all neurons.
        ignore: globs of paths of activations, or of weights, that are left alone.

    Attributes:
        entropies: H_l by path of the observer, at the end of the last round.
        budgets: m_l by path, of the last round.
        masks: the weights at 0.
        good: see above; None before the first evaluation.
        done: whether the accuracy has fallen, or nothing is left to do.

    Raises:
        TrainingError: an option is missing or out of its range, or no activation can be observed.
    """

    def __init__(
        self,
        shrinker: Shrinker,
        zeta: float | None = 0.5,
        *,
        epochs_per_round: int = 1,
        every: int = 1,
        most: float = 1.0,
        eps: float = 0.0,
        loss: Measure | None = None,
        rise: float = 0.0,
        evaluate: Measure | None = None,
        delta: float = 0.0,
        fuse: bool = False,
        plain_mean: bool = False,
        ignore: Sequence[str] = (),
    ) -> None:
        super().__init__(shrinker)
        _check(zeta, epochs_per_round, every, most, eps, loss, evaluate)
        self.zeta, self.epochs_per_round, self.every, self.most = (
            zeta,
            epochs_per_round,
            every,
            most,
        )
        self.eps, self.rise, self.delta = eps, rise, delta
        self.fuse, self.plain_mean, self.ignore = fuse, plain_mean, tuple(ignore)
        self._loss, self._evaluate = loss, evaluate
        shrinker.run("insert-observers")
        observers(shrinker.program).freeze()
        self.masks = WeightMasks(shrinker)
        self.entropies: dict[str, float] = {}
        self.budgets: dict[str, int] = {}
        self.good: Program | None = None
        self.done = False
        self._best: float | None = None
        self._steps = self._epochs = self._counted = 0
        self._known: tuple[Program, list[EntropyLayer]] | None = None
        layers = self.layers()
        if not layers:
            raise TrainingError(
                "no activation function can be observed",
                where=shrinker.program.name,
                do='see the remarks of shrinker.run("insert-observers"), and `ignore`',
            )
        self._layers = len(layers)
        self._names = [name for layer in layers for name in layer.weights]
        self._weights = self._left(self._names)

    def layers(self) -> list[EntropyLayer]:
        """The activations that are left, with the weights before them."""
        program = self.shrinker.program
        if self._known is None or self._known[0] is not program:
            self._known = program, find_entropy_layers(program, self.ignore)
        return self._known[1]

    def step(self, loss: Loss) -> torch.Tensor:
        try:
            return super().step(loss)
        finally:
            self._freeze(True)

    def begin(self) -> None:
        self.masks.follow()
        self._steps += 1
        last = self._epochs >= self.epochs_per_round - 1
        if self.done or not last or (self._steps - 1) % self.every:
            return
        if not self._counted:
            for layer in self.layers():
                layer.observer.reset()
        self._counted += 1
        self._freeze(False)

    def finish(self) -> None:
        self._freeze(True)
        self.masks.hold()

    def _freeze(self, frozen: bool) -> None:
        for layer in self.layers():
            layer.observer.freeze(frozen)

    def end_epoch(self) -> list[Change]:
        """Behind the last epoch of a round: removes what was linear, then prunes; else nothing.

        An epoch without a step that was counted ends no round.
        """
        self._epochs += 1
        self._steps = 0
        if self.done or self._epochs < self.epochs_per_round or not self._counted:
            return []
        self._epochs = self._counted = 0
        observers(self.shrinker.program).all_reduce()
        self.done = self._has_fallen() or not self.layers()
        if self.done:
            return []
        changes = self._remove_linear()
        self.entropies = {
            layer.path: layer.observer.layer_entropy(plain=self.plain_mean)
            for layer in self.layers()
        }
        if self.zeta is not None:
            self._prune(self.zeta)
        elif self.entropies:
            lowest = min(self.entropies, key=self.entropies.__getitem__)
            changes.append(self.shrinker.run([_ToIdentity(lowest)]))
        return [change for change in changes if change.changed]

    def _has_fallen(self) -> bool:
        """Whether the accuracy is too low now; else the program is the last good one."""
        if self._evaluate is None:
            return False
        accuracy = in_eval_mode(self._evaluate)(self.module)
        best = accuracy if self._best is None else self._best
        if not accuracy >= best - self.delta:
            return True
        self._best = max(best, accuracy)
        self.good = copy.deepcopy(self.shrinker.program)
        return False

    def _remove_linear(self) -> list[Change]:
        before = {layer.path for layer in self.layers()}
        loss = None if self._loss is None else in_eval_mode(self._loss)
        changes = [self.shrinker.run([Linearize(self.eps, self.rise, loss), DeadUnitsSeen()])]
        idle = before - {layer.path for layer in self.layers()}
        idle &= observers(self.shrinker.program).keys()
        if idle:
            text = " | ".join(f"remove-observers{{where={path}}}" for path in sorted(idle))
            changes.append(self.shrinker.run(text))
        if self.fuse:
            changes.append(self.shrinker.run("fuse-linear", rewritten="reset"))
        return changes

    def _prune(self, zeta: float) -> None:
        layers = [layer for layer in self.layers() if layer.weights]
        left = [self._left(layer.weights) for layer in layers]
        ratios = irrelevance_ratios([self._irrelevance(layer) for layer in layers])
        caps = [int(self.most * count) for count in left]
        parts = split_budget(round(zeta * sum(left)), ratios, caps)
        self.budgets = {layer.path: part for layer, part in zip(layers, parts, strict=True)}
        for layer, part in zip(layers, parts, strict=True):
            self.masks.prune(layer.weights, part)

    def _irrelevance(self, layer: EntropyLayer) -> float:
        tensors = self.shrinker.program.tensors()
        total = sum(
            float(tensors[n].detach().abs().sum(dtype=torch.float64)) for n in layer.weights
        )
        return self.entropies[layer.path] * total / max(1, self._left(layer.weights))

    def _left(self, names: Sequence[str]) -> int:
        """How many of some weights are there and not 0."""
        tensors = self.shrinker.program.tensors()
        return sum(int(tensors[name].count_nonzero()) for name in names if name in tensors)

    def settled(self) -> Program:
        """A copy of the network that training came to: of `good` where the accuracy had fallen."""
        return copy.deepcopy(self.good) if self.done and self.good else super().settled()

    def numbers(self) -> dict[str, float]:
        """Lowest and mean entropy of the last round, activations taken out, share of the weights left."""
        found = list(self.entropies.values())
        entropies = (
            {"entropy_min": min(found), "entropy_mean": sum(found) / len(found)} if found else {}
        )
        return {
            **entropies,
            "layers_linear": self._layers - len(self.layers()),
            "weights_left": self._left(self._names) / max(1, self._weights),
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the method stands, its masks and `good`; counts are part of the program."""
        return {
            "masks": self.masks.state_dict(),
            "good": {} if self.good is None else pack_program(self.good),
            **{name: copy.copy(getattr(self, name)) for name in _PLAIN},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        missing = [name for name in ("masks", "good", *_PLAIN) if name not in state]
        if missing or len(state) != len(_PLAIN) + 2:
            raise TrainingError("the state is of another method", where=", ".join(missing or state))
        self.masks.load_state_dict(state["masks"])
        for name in _PLAIN:
            setattr(self, name, copy.copy(state[name]))
        self.good = unpack_program(state["good"]) if state["good"] else None


# What there is to save beside masks and programs.
_PLAIN = (
    *("entropies", "budgets", "done", "_best", "_steps", "_epochs", "_counted"),
    *("_layers", "_names", "_weights"),
)


@dataclass(frozen=True)
class _ToIdentity(Rewrite):
    """Puts the identity in place of an activation, whatever that changes; its observer goes too."""

    name: ClassVar[str] = "to-identity"
    keeps: ClassVar[Keeps] = "nothing"
    path: str = ""

    def rewrite(self, program: Program, ctx: Context) -> Program:
        editor = ctx.edit(program)
        for layer in find_entropy_layers(program):
            if layer.path == self.path:
                source = editor.node(layer.activation.source)
                editor.replace(editor.node(layer.activation.node), source.all_input_nodes[0])
        return editor.finish()


def _check(
    zeta: float | None,
    epochs_per_round: int,
    every: int,
    most: float,
    eps: float,
    loss: Measure | None,
    evaluate: Measure | None,
) -> None:
    wrong = {
        "zeta must be above 0 and at most 1": zeta is not None and not 0 < zeta <= 1,
        "most must be above 0 and at most 1": not 0 < most <= 1,
        "epochs_per_round and every must be at least 1": min(epochs_per_round, every) < 1,
        "eps needs loss, which measures what it does": eps > 0 and loss is None,
        "zeta=None needs evaluate, which ends it": zeta is None and evaluate is None,
    }
    for text, found in wrong.items():
        if found:
            raise TrainingError(text, where="EntropyGuided")
