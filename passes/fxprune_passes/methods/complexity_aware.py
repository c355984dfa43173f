"""Prunes units and layers during training by their cost in MACs and parameters (arXiv 2411.09127)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fxprune.analysis.cache import remember, solved
from fxprune.analysis.group import Groups, find_groups
from fxprune.errors import OptionError
from fxprune.graph.gate import Gate
from fxprune.graph.program import Program
from fxprune.structure.blocks import find_blocks
from fxprune.structure.expected_cost import Expected
from fxprune.training import Change, Shrinker, TrainingError
from fxprune_passes.insert.insert_gates import Scope
from fxprune_passes.methods.gates.cost_share import blocks_around, expected_cost, present_cost
from fxprune_passes.methods.gates.gate_removal import remove_gated
from fxprune_passes.methods.gates.stochastic_gates import StochasticGates
from fxprune_passes.methods.gates.theta_gradients import Estimator
from fxprune_passes.methods.method import check_options

Tensor = torch.Tensor
# nu, alpha and beta in the experiments of the paper.
PRESETS: dict[str, tuple[float, float, float]] = {
    "cifar10-resnet56-units": (8.1e-2, 0.0, 0.0),
    "cifar10-resnet56": (8.1e-2, 0.8, 1.0),
    "imagenet-resnet50": (2.4e-1, 0.5, 0.5),
}


class ComplexityAware(StochasticGates):
    """Trains the weights together with probabilities theta of branches and their units, and removes both.

    Each residual branch has a gate xi_B ~ Bernoulli(theta_B) right before its add, and each unit inside it one of
    its own (arXiv 2411.09127); units of residual streams have none. The loss E_xi[J] is descended in the weights
    and in Theta, and each theta pays c beside, for the share of the network that its gate stands for now:

        J_FP(Theta) = beta E[MACs] / MACs_0 + (1 - beta) E[params] / params_0,
        c_B = nu alpha dJ_FP/dtheta_B,    c_unit = nu (1 - alpha) dJ_FP/dtheta_unit.

    With alpha = 1/2 these are the derivatives of nu/2 J_FP; else of no one function, since alpha weighs the two
    kinds differently. The gates are independent: the expectation of a product of different gates is the product
    of their thetas. A convolution from units a to units b in block B costs

        E[MACs] = theta_B sum(theta_a) sum(theta_b) k k H W,
        d/dtheta_B = sum(theta_a) sum(theta_b) k k H W,    d/dtheta_a = theta_B sum(theta_b) k k H W:

    a unit costs less the fewer units it is joined to and the less likely its block is, and nothing once that is gone.
    `fxprune.structure.expected_cost` has this in closed form for any graph. With no gate twice in a product it is
    affine in each theta alone, like E[J]: a theta stays between 0 and 1 only where its saving equals its cost.
    Prices follow the shrinking network; MACs_0 and params_0 stay those of the network at the start.

    **Reconstructions**: that beta = 1 is compute and beta = 0 parameters; J as the mean loss of a batch; the product
    form where one gate stands in two axes of one product. A unit gate whose units are all to close closes the
    block around it; where there is no block gate that could, the unit of the largest theta stays and is opened.

    Args:
        shrinker: see `StochasticGates`.
        nu: the strength of pruning, > 0; None with `keep`.
        alpha: the weight of layers against units, 0 to 1. At 0 only units have gates, at 1 only branches.
        beta: the weight of MACs against parameters, 0 to 1. At 1 only MACs count.
        keep: the wished share of the cost, instead of nu and beta; alpha still weighs the two kinds of gates.
        refresh: the prices are recomputed after this many steps, and after each removal.
        options: see `StochasticGates`; the estimator for branches is the trapezoid by default, as it is for units.

    Attributes:
        start_macs: MACs_0, at the batch size of the example.
        start_params: params_0, without thetas.

    Raises:
        TrainingError: the network has no residual block or no removable unit, although alpha requires one.
        OptionError: an option is out of its range.
    """

    def __init__(
        self,
        shrinker: Shrinker,
        nu: float | None = None,
        alpha: float = 0.5,
        beta: float = 1.0,
        *,
        keep: float | None = None,
        refresh: int = 10,
        estimator: Estimator = "trapezoid",
        **options: Any,
    ) -> None:
        check_options(
            ("nu", nu, nu is None or 0 < nu < float("inf"), "a number above 0"),
            ("keep", keep, (nu is None) != (keep is None), "used instead of nu"),
            ("alpha", alpha, 0 <= alpha <= 1, "from 0 (units only) to 1 (layers only)"),
            ("beta", beta, 0 <= beta <= 1, "from 0 (parameters only) to 1 (MACs only)"),
            ("refresh", refresh, refresh >= 1, "1 or more steps"),
        )
        self.nu, self.alpha, self.beta, self.refresh = nu or 0.0, alpha, beta, refresh
        wanted: dict[Scope, bool] = {"block": alpha > 0, "inner": alpha < 1}
        self.insertion = tuple(scope for scope, want in wanted.items() if want)
        self.start_macs, self.start_params = present_cost(shrinker.program)
        self._prices: dict[str, Tensor] = {}
        self._age = 0
        super().__init__(shrinker, estimator=estimator, keep=keep, **options)
        self._groups = _gated_groups(shrinker.program, self.gates)

    @classmethod
    def preset(cls, name: str, shrinker: Shrinker, **options: Any) -> ComplexityAware:
        """Creates the method with nu, alpha and beta of an experiment of the paper; other options are our own.

        Args:
            name: one of `PRESETS`.
            shrinker: see `StochasticGates`.
            options: see above.
        """
        if name not in PRESETS:
            raise OptionError(
                f"there is no preset {name}", do=f"choose one of {', '.join(PRESETS)}"
            )
        return cls(shrinker, *PRESETS[name], **options)

    def insert(self) -> None:
        super().insert()
        kinds = {gate.theta.dim() for gate in self.gates.values()}
        if len(kinds) == len(self.insertion):
            return
        for gate in self.gates.values():
            gate.set(1.0)
        remove_gated(self.shrinker, {}, list(self.gates), verify=self.verify)
        if 0 not in kinds:
            raise TrainingError(
                f"alpha is {self.alpha}, but there is no residual block",
                where=self.shrinker.program.name,
                why="a layer without a shortcut around it cannot be removed: that would cut the network in two",
                do='set alpha=0 to prune units only, or insert shortcuts first: shrinker.run("insert-skips")',
            )
        raise TrainingError(
            f"alpha is {self.alpha}, but there are no units that can be gated",
            where=self.shrinker.program.name,
            do="set alpha=1 to prune layers only",
        )

    def costs(self) -> dict[str, Tensor]:
        if self.budget is not None:
            return self.costs_now()
        found = self.gates
        if self._age % self.refresh == 0 or self._prices.keys() != found.keys():
            self._age, self._prices = 0, self._work_out(found)
        self._age += 1
        return self._prices

    def costs_now(self) -> dict[str, Tensor]:
        if self.budget is not None:
            return self.budget.costs(self.shrinker.program, self.gates, self.weight)
        return self._work_out(self.gates)

    def _work_out(self, found: Mapping[str, Gate]) -> dict[str, Tensor]:
        if not found:
            return {}
        with torch.enable_grad():
            thetas = {p: g.theta.detach().clone().requires_grad_() for p, g in found.items()}
            share = self._share(expected_cost(self.shrinker.program, thetas))
            slopes = torch.autograd.grad(share, list(thetas.values()), allow_unused=True)
        return {
            path: torch.zeros_like(theta) if slope is None else self.nu * self.weight(theta) * slope
            for (path, theta), slope in zip(thetas.items(), slopes, strict=True)
        }

    def weight(self, theta: Tensor) -> float:
        return 1 - self.alpha if theta.dim() else self.alpha

    def _share(self, expected: Expected) -> Tensor:
        macs, params = expected.macs / self.start_macs, expected.params / self.start_params
        return self.beta * macs + (1 - self.beta) * params

    def closing(self, path: str, gate: Gate) -> Tensor:
        low = super().closing(path, gate)
        inside = [p for p, around in blocks_around(self.shrinker.program).items() if around == path]
        return low | any(self._is_empty(p) for p in inside) if inside else low

    def _is_empty(self, path: str) -> bool:
        return bool(super().closing(path, self.gates[path]).all())

    @torch.no_grad()
    def _remove(self, opened: list[str]) -> list[Change]:
        for path, gate in self.gates.items():
            if (
                gate.theta.dim()
                and path not in blocks_around(self.shrinker.program)
                and self._is_empty(path)
            ):
                last = gate.theta.argmax()
                gate.theta[last] = gate.sample[last] = 1
        changes = super()._remove(opened)
        if changes:
            self._age = 0
        return changes

    def numbers(self) -> dict[str, float]:
        """MACs and parameters, expected and present, as shares of the start; remaining blocks and gated units."""
        program = self.shrinker.program
        with torch.no_grad():
            expected = expected_cost(program, {p: g.theta for p, g in self.gates.items()})
        macs, params = present_cost(program)
        return {
            **super().numbers(),
            "expected_macs": float(expected.macs) / self.start_macs,
            "expected_params": float(expected.params) / self.start_params,
            "macs_share": macs / self.start_macs,
            "params_share": params / self.start_params,
            "blocks": float(len(find_blocks(program))),
            "gated_units": float(sum(len(g) for g in _groups(program) if g.name in self._groups)),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "start": (self.start_macs, self.start_params),
            "prices": {path: price.clone() for path, price in self._prices.items()},
            "age": self._age,
            "groups": sorted(self._groups),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.start_macs, self.start_params = state["start"]
        found = self.gates
        self._prices = {p: v.to(found[p].theta.device) for p, v in state["prices"].items()}
        self._age, self._groups = state["age"], frozenset(state["groups"])


def _groups(program: Program) -> Groups:
    return remember(program, find_groups, lambda: find_groups(solved(program)))


def _gated_groups(program: Program, found: Mapping[str, Gate]) -> frozenset[str]:
    """The names of the dependency groups whose units have gates."""
    axes = solved(program)
    labels = (label for path in found for label in axes.params[f"{path}.theta"])
    units = {unit for label in labels for column in label.columns for unit in column.tolist()}
    return frozenset(g.name for g in _groups(program) if units & set(g.units.tolist()))
