"""Prunes weights where activations are nearly linear, and removes the layers that have become linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from fxprune.analysis.cache import remember
from fxprune.graph.program import Program
from fxprune.observe import OnFraction, observers
from fxprune.training import Change, Shrinker, TrainingError
from fxprune_passes.methods.activations.entropy_layers import EntropyLayer, find_entropy_layers
from fxprune_passes.methods.activations.entropy_pruning import prune_by_entropy
from fxprune_passes.methods.activations.linear_removal import (
    ToIdentity,
    join_linear,
    remove_linear,
)
from fxprune_passes.methods.activations.removed import Removed
from fxprune_passes.methods.measures.counted_steps import CountedSteps
from fxprune_passes.methods.measures.last_good import LastGood
from fxprune_passes.methods.measures.measure import Measure, in_eval_mode
from fxprune_passes.methods.method import Method, When, check_options, for_use
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
    0 < p < 1. Of the weights W_l before the activation (`find_entropy_layers`), each round sets the m_l smallest
    to 0, more where H_l is low; `prune_by_entropy` gives the formula of m_l. It is sharp, and a layer may lose
    all of its weights; with no shortcut around it that cuts the network in two. `most` bounds what one round
    takes of a layer.

    A round is `epochs_per_round` epochs; activations are counted in the steps of the last one, never in an
    evaluation. Behind it, before weights go, `linearize` takes out what was linear on the data of that epoch: an
    activation always on becomes the identity, one always off 0, the off units of a mixed one go;
    `dead-units-seen` takes other units that were never on. Other data might have turned them on. GELU and SiLU
    are counted by sign and are never exactly linear: they go with `eps`, where the loss allows it, or
    with `zeta=None`.

    With `zeta=None` the activation of the lowest entropy becomes the identity behind each round, and the next
    round retrains, in EASIER with a learning rate that starts anew: see `round_started`. `curve` is the accuracy
    at the end of each round against what has been removed.

    With `delta`, a round whose accuracy is more than `delta` below the best one so far ends the method: the
    network of the last round that had not fallen takes the place of the one in training, and training goes on
    from there. Nothing is removed any more.

    A norm in train mode is not affine: layers around an identity are fused in `finish_training`. Between padded
    convolutions that is exact only with `move_padding`: as soon as nothing but norms is left between two of
    them, their padding moves in front of both, and training goes on in that form.

    Args:
        shrinker: the shrinker of the network in training; observers are inserted there.
        zeta: the share of the remaining weights that each round prunes; None: by entropy only.
        epochs_per_round: the number of training epochs in each round.
        rounds: the number of rounds that prune; one more ends with a last measurement, and then training only
            continues. None: all rounds prune.
        observe_every: count in every n-th step only; units that are always on or off are then known less reliably.
        most: the largest share of the weights of a layer that one round prunes.
        eps: the entropy in bits below which an activation that is not linear may be removed; requires `loss`.
        loss: returns the loss of a module in eval mode on your data.
        rise: by how much that loss may rise in a round.
        evaluate: returns the accuracy of a module in eval mode, on data that is neither trained nor tested on.
        delta: by how much the accuracy may fall, see above; None: by any amount.
        fuse: whether linear layers are fused between rounds as well; their optimizer states are reset.
        fuse_when: cheaper: layers are fused, and padding moves, where the fused layer costs no more; always:
            wherever that is exact.
        between_layers: with `zeta=None`, whether only activations go without which two layers can be fused: not
            those before or behind a residual addition.
        move_padding: whether padding moves, see above. Values at the border change; a remark says by how much.
        plain_mean: whether H_l is the mean over all neurons; None: with `zeta=None` only.
        ignore: globs of the paths of activations, or of the names of weights, that are left unchanged.
        verify: whether each removal is verified.

    Attributes:
        entropies: H_l by the path of the observer, at the end of the last round.
        budgets: m_l by the path of the observer, in the last round.
        masks: the masks of the pruned weights.
        curve: for each round that has ended, the number of removed activations, the layers gone, and the accuracy;
            empty without `evaluate`.
        done: whether nothing is removed any more.
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
        delta: float | None = None,
        fuse: bool = False,
        fuse_when: When = "cheaper",
        between_layers: bool = False,
        move_padding: bool = False,
        plain_mean: bool | None = None,
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
                delta is None or evaluate is not None,
                "given if delta is given: it measures the accuracy that may fall",
            ),
            (
                "fuse_when",
                repr(fuse_when),
                fuse_when in get_args(When),
                f"one of {', '.join(get_args(When))}",
            ),
        )
        self.zeta, self.most, self.fuse, self.fuse_when = zeta, most, fuse, fuse_when
        self.between_layers, self.move_padding = between_layers, move_padding
        self.plain_mean = zeta is None if plain_mean is None else plain_mean
        self.epochs_per_round, self.rounds, self.observe_every = (
            epochs_per_round,
            rounds,
            observe_every,
        )
        self.ignore, self.verify = tuple(ignore), verify
        self._linearize = Linearize(eps, rise, None if loss is None else in_eval_mode(loss))
        self._last_good = LastGood(evaluate, delta)
        self.curve: list[tuple[int, int, float]] = []
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
        self._removed = Removed(shrinker.program, layers, fuse_when)

    @property
    def good(self) -> Program | None:
        """A copy of the last program whose accuracy had not fallen; None without `delta`, and after the end."""
        point = self._last_good.point
        return None if point is None else point.program

    @property
    def round_started(self) -> bool:
        """Whether the next step is the first one of a round, or of training behind the last: restart the rate."""
        return self._epochs == 0 and self.steps == 0

    @property
    def layers_gone(self) -> int:
        """How many convolutions and linear layers fewer `finish_training` gives than at the start of training."""
        return self._removed.layers_gone

    @property
    def _is_over(self) -> bool:
        return self.done or self.round == self.rounds

    def layers(self) -> list[EntropyLayer]:
        """The remaining activations with the weights before them."""
        program, key = self.shrinker.program, (find_entropy_layers, self.ignore)
        return remember(program, key, lambda: find_entropy_layers(program, self.ignore))

    def _targets(self) -> list[str]:
        """The paths of the activations that may still go."""
        any_one = self.zeta is not None or not self.between_layers
        return [layer.path for layer in self.layers() if any_one or layer.between_layers]

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
        """After the last epoch of a round: measures, removes linear activations and prunes; otherwise nothing."""
        self._counts.roll_back()
        self._epochs += 1
        if self.done or self._epochs < self.epochs_per_round:
            return []
        self._epochs = self._counts.count = 0
        accuracy = self._last_good.measure(self.shrinker)
        if accuracy is not None:
            linear = self._removed.layers_linear(self.layers())
            self.curve.append((linear, self.layers_gone, accuracy))
        fallen = self._last_good.has_fallen(self.shrinker, accuracy)
        self.done = fallen or self._is_over or not self._targets()
        changes: list[Change] = []
        if fallen:
            changes = self._go_back()
        elif self.done:
            self._last_good.take()
        else:
            changes = self._end_round()
        self._counts.settle()
        self._removed.count(self.shrinker.program)
        return [change for change in changes if change.changed]

    def _go_back(self) -> list[Change]:
        """Trains on from the last good network, with the weights at 0 that were 0 in it."""
        good = self._last_good.take()
        changes = [self.shrinker.go_back(good)] if good else []
        names = self.shrinker.program.tensors().keys() & set(self._removed.names)
        if self.zeta is not None and names:
            self.masks.prune(sorted(names), 0)
        return changes

    def _end_round(self) -> list[Change]:
        observers(self.shrinker.program).all_reduce()
        changes = remove_linear(self.shrinker, self._linearize, self.ignore, verify=self.verify)
        self.entropies = {
            path: one.layer_entropy(plain=self.plain_mean) for path, one in self._watched().items()
        }
        targets = self._targets()
        if self.zeta is None and targets:
            lowest = min(targets, key=self.entropies.__getitem__)
            changes.append(self.shrinker.run([ToIdentity(lowest)], verify=self.verify))
        changes += join_linear(
            self.shrinker,
            self.fuse_when,
            move_padding=self.move_padding,
            fuse=self.fuse,
            verify=self.verify,
        )
        if self.zeta is not None:
            self.budgets = prune_by_entropy(
                self.shrinker.program,
                self.masks,
                self.layers(),
                self.entropies,
                self.zeta,
                self.most,
            )
        self.round += 1
        return changes

    def finish_training(self) -> Program:
        """A copy of the network for inference, with layers fused according to `fuse_when`; see `for_use`."""
        return for_use(self.settled(), when=self.fuse_when)

    def numbers(self) -> dict[str, float]:
        """Entropies of the last round, removed activations, layers gone, the share of weights left, the accuracy."""
        found = list(self.entropies.values())
        entropies = (
            {"entropy_min": min(found), "entropy_mean": sum(found) / len(found)} if found else {}
        )
        return {
            **entropies,
            **({"accuracy": self.curve[-1][-1]} if self.curve else {}),
            "layers_linear": self._removed.layers_linear(self.layers()),
            "layers_gone": self.layers_gone,
            "weights_left": self._removed.weights_left(self.shrinker.program),
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
            "removed": self._removed.state_dict(),
            "curve": list(self.curve),
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
        self.curve = list(state["curve"])
        self._removed.load_state_dict(state["removed"])
