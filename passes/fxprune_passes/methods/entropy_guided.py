"""Prunes weights where activations are nearly linear, and removes the layers that have become linear."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fxprune.analysis.cache import remember
from fxprune.graph.program import Program
from fxprune.observe import OnFraction, observers
from fxprune.training import Change, Shrinker, TrainingError
from fxprune_passes.methods.activations.entropy_layers import EntropyLayer, find_entropy_layers
from fxprune_passes.methods.activations.linear_removal import ToIdentity, remove_linear
from fxprune_passes.methods.measures.counted_steps import CountedSteps
from fxprune_passes.methods.measures.last_good import LastGood
from fxprune_passes.methods.measures.measure import Measure, in_eval_mode
from fxprune_passes.methods.method import Method, check_options
from fxprune_passes.methods.weights.weight_budgets import irrelevance_ratios, split_budget
from fxprune_passes.methods.weights.weight_masks import WeightMasks
from fxprune_passes.rewrite.linearize import Linearize


class EntropyGuided(Method):
    """Prunes weights where the entropy of activations is low, and removes layers that have become linear.

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
        shrinker: the shrinker of the network in training; observers are inserted there.
        zeta: the share of the remaining weights that each round prunes; None: by entropy only.
        epochs_per_round: the number of training epochs in each round.
        rounds: the number of rounds that prune, after which training only continues; None: all rounds prune.
        observe_every: count in every n-th step only; units that are always on or off are then known less reliably.
        most: the largest share of the weights of a layer that one round prunes.
        eps: the entropy in bits below which an activation that is not linear may be removed; requires `loss`.
        loss: returns the loss of a module in eval mode on your data.
        rise: by how much that loss may rise in a round.
        evaluate: returns the accuracy of a module in eval mode; required for `zeta=None`.
        delta: by how much the accuracy may fall.
        fuse: whether linear layers are fused between rounds as well; their optimizer states are reset.
        plain_mean: whether H_l is the mean over all neurons.
        ignore: globs of the paths of activations, or of the names of weights, that are left unchanged.
        verify: whether each removal is verified.

    Attributes:
        entropies: H_l by the path of the observer, at the end of the last round.
        budgets: m_l by the path of the observer, in the last round.
        masks: the masks of the pruned weights.
        good: see above; None before the first evaluation.
        done: whether the accuracy has fallen, or nothing is left to prune.
        round: the number of rounds that have pruned.

    Raises:
        TrainingError: no activation can be observed.
        OptionError: an option is missing or out of its range.
    """

    def __init__(
        self,
        shrinker: Shrinker,
        zeta: float | None = 0.5,
        *,
        epochs_per_round: int = 1,
        rounds: int | None = None,
        observe_every: int = 1,
        most: float = 1.0,
        eps: float = 0.0,
        loss: Measure | None = None,
        rise: float = 0.0,
        evaluate: Measure | None = None,
        delta: float = 0.0,
        fuse: bool = False,
        plain_mean: bool = False,
        ignore: Sequence[str] = (),
        verify: bool = True,
    ) -> None:
        super().__init__(shrinker)
        check_options(
            ("zeta", zeta, zeta is None or 0 < zeta <= 1, "above 0 and at most 1, or None"),
            ("most", most, 0 < most <= 1, "above 0 and at most 1"),
            ("epochs_per_round", epochs_per_round, epochs_per_round >= 1, "1 or more"),
            ("rounds", rounds, rounds is None or rounds >= 1, "1 or more, or None"),
            ("observe_every", observe_every, observe_every >= 1, "1 or more steps"),
            (
                "loss",
                loss,
                loss is not None or eps <= 0,
                "given if eps is above 0: it measures the effect of removing activations",
            ),
            (
                "evaluate",
                evaluate,
                zeta is not None or evaluate is not None,
                "given if zeta is None",
            ),
        )
        self.zeta, self.most, self.plain_mean, self.fuse = zeta, most, plain_mean, fuse
        self.epochs_per_round, self.rounds, self.observe_every = (
            epochs_per_round,
            rounds,
            observe_every,
        )
        self.ignore, self.verify = tuple(ignore), verify
        self._linearize = Linearize(eps, rise, None if loss is None else in_eval_mode(loss))
        self._last_good = LastGood(evaluate, delta)
        shrinker.run("insert-observers", verify=verify)
        observers(shrinker.program).freeze()
        self.masks = WeightMasks(shrinker)
        self.entropies: dict[str, float] = {}
        self.budgets: dict[str, int] = {}
        self.done = False
        self.round = self._epochs = 0
        self._counts = CountedSteps(shrinker, self._watched)
        self._counts.settle()
        layers = self.layers()
        if not layers:
            raise TrainingError(
                "no activation function can be observed",
                where=shrinker.program.name,
                do='check the remarks of shrinker.run("insert-observers"), and the option `ignore`',
            )
        self._layers = len(layers)
        self._names = [name for layer in layers for name in layer.weights]
        self._weights = self._left(self._names)

    @property
    def good(self) -> Program | None:
        return self._last_good.program

    @property
    def _is_over(self) -> bool:
        return self.done or self.round == self.rounds

    def layers(self) -> list[EntropyLayer]:
        """The remaining activations with the weights before them."""
        program, key = self.shrinker.program, (find_entropy_layers, self.ignore)
        return remember(program, key, lambda: find_entropy_layers(program, self.ignore))

    def _watched(self) -> dict[str, OnFraction]:
        return {layer.path: layer.observer for layer in self.layers()}

    def begin(self) -> None:
        self.masks.follow()
        last = self._epochs >= self.epochs_per_round - 1
        counts = last and not self._is_over and self.steps % self.observe_every == 0
        if counts and not self._counts.count:
            self._counts.reset()
        self._counts.begin(counts)

    def finish(self) -> None:
        super().finish()
        self._counts.finish()
        self.masks.hold()

    def give_up(self) -> None:
        self._counts.roll_back()

    def remove(self) -> list[Change]:
        """After the last epoch of a round: removes linear activations, then prunes weights; otherwise nothing."""
        self._counts.roll_back()
        self._epochs += 1
        if self._is_over or self._epochs < self.epochs_per_round:
            return []
        self._epochs = self._counts.count = 0
        observers(self.shrinker.program).all_reduce()
        self.done = self._last_good.has_fallen(self.shrinker) or not self.layers()
        if self.done:
            return []
        changes = remove_linear(
            self.shrinker, self._linearize, self.ignore, fuse=self.fuse, verify=self.verify
        )
        self.entropies = {
            path: one.layer_entropy(plain=self.plain_mean) for path, one in self._watched().items()
        }
        if self.zeta is not None:
            self._prune(self.zeta)
        elif self.entropies:
            lowest = min(self.entropies, key=self.entropies.__getitem__)
            changes.append(self.shrinker.run([ToIdentity(lowest)], verify=self.verify))
        self._counts.settle()
        self.round += 1
        return [change for change in changes if change.changed]

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
        """The number of nonzero elements among some weights that the program still has."""
        tensors = self.shrinker.program.tensors()
        return sum(int(tensors[name].count_nonzero()) for name in names if name in tensors)

    def settled(self) -> Program:
        """A copy of the trained network, or of `good` where the method is done and has one."""
        return copy.deepcopy(self.good) if self.done and self.good else super().settled()

    def numbers(self) -> dict[str, float]:
        """The lowest and the mean entropy of the last round, the removed activations, and the share of weights left."""
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
        """The progress of the method, its masks and `good`; the counts are part of the program."""
        return super().state_dict() | {
            "round": self.round,
            "epochs": self._epochs,
            "counted": self._counts.count,
            "done": self.done,
            "entropies": dict(self.entropies),
            "budgets": dict(self.budgets),
            "start": (self._layers, list(self._names), self._weights),
            "masks": self.masks.state_dict(),
            "good": self._last_good.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.masks.load_state_dict(state["masks"])
        self._last_good.load_state_dict(state["good"])
        self.round, self._epochs = state["round"], state["epochs"]
        self._counts.count = state["counted"]
        self.done = state["done"]
        self.entropies, self.budgets = dict(state["entropies"]), dict(state["budgets"])
        self._layers, names, self._weights = state["start"]
        self._names = list(names)
