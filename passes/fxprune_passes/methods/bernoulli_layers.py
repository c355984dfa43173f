"""Prunes layers during training by Bernoulli gates on residual branches (arXiv 2406.04549)."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any

import torch

from fxprune.analysis.cache import remember
from fxprune.distributed import whole
from fxprune.errors import OptionError
from fxprune.graph.gate import Gate
from fxprune.graph.leaf import is_inside_leaf
from fxprune.structure.blocks import find_blocks
from fxprune.training import Shrinker
from fxprune_passes.methods.gates.stochastic_gates import StochasticGates
from fxprune_passes.methods.method import check_options

Tensor = torch.Tensor


class BernoulliLayers(StochasticGates):
    """Trains the weights together with probabilities theta of the residual branches, and removes branches.

    A block gives `S(z) + xi F(z)` with xi ~ Bernoulli(theta), one for the whole batch. Guenter and Sideris
    (arXiv 2406.04549) put on xi the prior Bernoulli(pi), and on pi the flattening hyper-prior

        p(pi | g) = (g - 1) / log g * 1 / (1 + (g - 1) (1 - pi)),    0 < g < 1.

    Variational inference with the posterior Bernoulli(theta) and a point estimate of pi then minimises

        theta log(theta / pi) + (1 - theta) log((1 - theta) / (1 - pi)) + log(1 + (g - 1) (1 - pi)) + const

    over pi. With s = 1 + (g - 1) (1 - pi) the derivative in pi is

        -theta / pi + (1 - theta) / (1 - pi) - (g - 1) / s,

    which times pi (1 - pi) s is pi - theta s, linear in pi: the only minimum is where s = pi / theta, at
    pi = g theta / D with D = 1 + (g - 1) theta. There (1 - theta) / (1 - pi) = D and s = g / D, and the sum is

        theta log(D / g) + (1 - theta) log D + log(g / D) = log g - theta log g,

    that is **-theta log g** up to a constant: linear, so that nothing pushes theta away from 0 or 1, and an
    untrained block does not collapse by a singularity. With N samples, and lam the precision of a normal prior on the
    weights, the objective for each sample is

        L(W, theta) = E_xi[J] + lam / (2 N) ||W||^2 + sum_l c_l theta_l,    c_l = -log(g_l) / N.

    L is affine in each theta_l alone: its minima are networks without chance. c_l is what a block must be worth: it
    stays where leaving it out would raise the loss by more. The second term is a weight decay of lam / N of
    plain SGD, and the optimizer's to know.

    The early test (**a reconstruction**, off by default). Let w = ||W|| of one block, and N J be kappa-Lipschitz in W:
    without W the branch gives 0, so that N (E[J | xi = 0] - E[J | xi = 1]) <= kappa w, and the pull on W along
    itself is at most theta kappa w. Along the gradient flow of N L, with a = lam |log g| / kappa^2,

        d/dt (w^2 / 2 + a theta) <= -lam w^2 + theta kappa w + a kappa w - a |log g| <= -lam (w - a kappa / lam)^2

    as long as theta <= a. Where w^2 / 2 + a theta < a^2 that holds, and goes on to hold: the block can only fall to
    0. A norm inside the branch makes its output the same for every scale of W; then no such kappa is known.

    Args:
        shrinker: see `StochasticGates`.
        samples: N, the size of the training set.
        log_g: log g < 0 for all blocks, or for blocks by globs of the paths of their gates (the first match counts).
        lam: for the early test: weight decay times N.
        kappa: for the early test; None disables it.
        keep: the wished share of the cost, instead of `samples` and `log_g`: a block then pays a price, the same for
            all, for its share of the cost, -log g_l = price N cost_l / cost; see `StochasticGates`.
        options: see `StochasticGates`. The estimator is two-pass by default: it is unbiased, has less variance than
            the score function, and learns at 0 and 1 too, at the cost of a second forward pass in each step.

    Raises:
        TrainingError: the network has no residual blocks.
        OptionError: an option is out of its range, or a block has no log g.
    """

    def __init__(
        self,
        shrinker: Shrinker,
        samples: int | None = None,
        log_g: float | Mapping[str, float] | None = None,
        *,
        lam: float = 0.0,
        kappa: float | None = None,
        keep: float | None = None,
        **options: Any,
    ) -> None:
        given = samples is not None and log_g is not None
        check_options(
            ("samples", samples, samples is None or samples >= 1, "1 or more"),
            ("keep", keep, given == (keep is None), "used instead of samples and log_g"),
        )
        self.samples, self.lam, self.kappa = samples or 1, lam, kappa
        self.log_g = (
            dict(log_g) if isinstance(log_g, Mapping) else {"*": -1.0 if log_g is None else log_g}
        )
        check_options(
            *(("log_g", v, isfinite(v) and v < 0, "below 0") for v in self.log_g.values()),
            ("lam", lam, lam >= 0, "0 or more"),
            ("kappa", kappa, kappa is None or kappa > 0, "above 0, or None"),
        )
        super().__init__(shrinker, keep=keep, **options)
        for path in self.gates:
            self._log_g_of(path)

    def costs(self) -> dict[str, Tensor]:
        if self.budget is not None:
            return self.budget.costs(self.shrinker.program, self.gates, self.weight)
        return {
            path: torch.full_like(gate.theta, -self._log_g_of(path) / self.samples)
            for path, gate in self.gates.items()
        }

    def closing(self, path: str, gate: Gate) -> Tensor:
        low = super().closing(path, gate)
        if self.kappa is None:
            return low
        a = self.lam * abs(self._log_g_of(path)) / self.kappa**2
        named = dict(self.module.named_parameters())
        inside = self._inside().get(path, ())
        if not inside:
            return low
        squares = [whole(named[n].detach().double().square().sum()) for n in inside]
        half = torch.stack(squares).sum() / 2
        return low | (half + a * gate.theta.detach() < a**2)

    def numbers(self) -> dict[str, float]:
        """The numbers of `StochasticGates`, and the number of remaining residual blocks, gated or not."""
        return {**super().numbers(), "blocks": float(len(find_blocks(self.shrinker.program)))}

    def _log_g_of(self, path: str) -> float:
        names = (path, path.rpartition(".")[0])
        for glob, value in self.log_g.items():
            if any(fnmatchcase(n, glob) for n in names):
                return value
        raise OptionError(
            f"log_g has no entry for {path}", do='add an entry for all other gates: "*"'
        )

    def _inside(self) -> dict[str, tuple[str, ...]]:
        """The names of the weights that are removed with the branch of each gate, by gate path."""
        program = self.shrinker.program

        def find() -> dict[str, tuple[str, ...]]:
            return {
                str(block.branch.target): tuple(
                    n for n in block.parameters if not is_inside_leaf(program.module, n)
                )
                for block in find_blocks(program)
            }

        return remember(program, "weights behind gates", find)
