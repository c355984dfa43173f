"""Running means of differences, and what they are good for: estimates of less variance."""

from __future__ import annotations

import pytest
import torch

from fxprune.graph.gate import Gate
from fxprune_passes.methods.gates.running_differences import RunningDifferences
from fxprune_passes.methods.gates.theta_gradients import Estimate

Tensor = torch.Tensor
COUNT = 4
COST = torch.tensor(0.05)


def make_turns() -> dict[str, Gate]:
    return {f"gate{i}": Gate(kind="bernoulli") for i in range(COUNT)}


def turn(number: int, difference: float) -> dict[str, Estimate]:
    """What two-pass says of the gate whose turn it is."""
    return {f"gate{number}": Estimate(torch.tensor(difference), torch.tensor(float(COUNT)))}


def test_the_mean_over_turns_is_the_difference_and_the_cost_whatever_the_means_are() -> None:
    running, turns = RunningDifferences(), make_turns()
    for i in range(COUNT):
        running.update(turn(i, -3.0 + i))
    differences = torch.tensor([-0.3, 0.2, 0.0, 0.7])
    total = torch.zeros(COUNT)
    for i in range(COUNT):
        found = running.controlled(turn(i, float(differences[i])), turns)
        total += torch.stack([found[path].plus(COST) for path in turns])
    torch.testing.assert_close(total / COUNT, differences + COST)


def test_a_gate_without_an_estimate_waits_for_its_first_turn() -> None:
    running, turns = RunningDifferences(), make_turns()
    running.update(turn(1, 0.5))
    found = running.controlled(turn(0, -0.2), turns)
    assert found.keys() == {"gate0", "gate1"}
    assert float(found["gate0"].plus(COST)) == pytest.approx(COUNT * (-0.2 + 0.05))
    assert float(found["gate1"].plus(COST)) == pytest.approx(0.5 + 0.05)


def test_other_estimates_stay_as_they_are() -> None:
    running = RunningDifferences()
    one = Estimate(torch.tensor([0.1, 0.2]))
    running.update({"units": one})
    assert running.controlled({"units": one}, {})["units"] is one


def test_the_variance_falls_to_that_of_what_the_means_do_not_foresee() -> None:
    running, turns = RunningDifferences(), make_turns()
    generator = torch.Generator().manual_seed(0)
    worths = torch.tensor([-0.5, -0.3, 0.4, -0.2])
    raw, better = [], []
    for _ in range(4000):
        i = int(torch.randint(COUNT, (), generator=generator))
        seen = turn(i, float(worths[i] + 0.05 * torch.randn((), generator=generator)))
        found = running.controlled(seen, turns)
        running.update(seen)
        each = [found[p].plus(torch.zeros(())) if p in found else torch.zeros(()) for p in turns]
        better.append(torch.stack(each))
        raw.append(
            torch.zeros(COUNT).index_fill(
                0, torch.tensor(i), COUNT * float(seen[f"gate{i}"].difference)
            )
        )
    raw_values, values = torch.stack(raw)[500:], torch.stack(better)[500:]
    torch.testing.assert_close(values.mean(0), worths, atol=0.01, rtol=0)
    # B E[d^2] - D^2, and B (Var d + the variance of the mean)
    torch.testing.assert_close(raw_values.var(0), (COUNT - 1) * worths**2, atol=0.03, rtol=0.1)
    assert float(values.var(0).max()) < 0.02


def test_units_of_one_gate_take_turns_as_well() -> None:
    running, gate = RunningDifferences(), Gate(3, "bernoulli")
    first = {"units": Estimate(torch.full((3,), 0.4), torch.tensor([0.0, 3.0, 0.0]))}
    running.update(first)
    second = {"units": Estimate(torch.full((3,), 0.6), torch.tensor([3.0, 0.0, 0.0]))}
    found = running.controlled(second, {"units": gate})["units"]
    torch.testing.assert_close(found.plus(torch.zeros(())), torch.tensor([1.8, 0.4, 0.0]))
    torch.testing.assert_close(found.plus(torch.ones(())), torch.tensor([4.8, 1.4, 0.0]))
