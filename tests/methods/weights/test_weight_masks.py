"""Masks of single weights: which go, and that they stay at 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.shrink.tensors import slice_axes
from fxprune.testing.training import OPTIMIZERS, ConvNet, captured, make_batches, train
from fxprune.training import Shrinker, TrainingError
from fxprune_passes.methods.weights.weight_masks import WeightMasks

NAMES = ("blocks.0.conv1.weight", "blocks.0.conv2.weight")
STEPS = 6


def start(optimizer: str = "sgd", dtype: torch.dtype = torch.float64) -> Shrinker:
    """A network after three steps: momentum and moments are not 0."""
    program = captured()
    program.module.to(dtype)
    shrinker = Shrinker(program, OPTIMIZERS[optimizer](program.module.parameters()))
    steps(shrinker, 3)
    return shrinker


def steps(shrinker: Shrinker, count: int, after: Callable[[], None] = lambda: None) -> list[float]:
    losses = []
    dtype = next(shrinker.module.parameters()).dtype
    for x, y in make_batches(ConvNet, count):
        losses += train(shrinker.module, shrinker.optimizer, [(x.to(dtype), y)])
        after()
    return losses


def weight(shrinker: Shrinker, name: str) -> torch.Tensor:
    return shrinker.program.tensors()[name].detach()


def is_zero(tensor: torch.Tensor) -> bool:
    """Plain 0, not -0."""
    return bool((tensor == 0).all()) and not bool(tensor.signbit().any())


def test_the_smallest_of_all_go() -> None:
    shrinker = start()
    every = sorted(abs(v) for n in NAMES for v in weight(shrinker, n).flatten().tolist())
    WeightMasks(shrinker).prune(NAMES, 100)
    left = [abs(v) for n in NAMES for v in weight(shrinker, n).flatten().tolist()]
    assert sorted(left) == [0.0] * 100 + every[100:]


def test_what_is_0_already_does_not_count_and_stays() -> None:
    shrinker = start()
    with torch.no_grad():
        shrinker.program.tensors()[NAMES[0]][0] = 0
    masks = WeightMasks(shrinker)
    masks.prune(NAMES[:1], 7)
    (mask,) = masks.masks().values()
    assert int(mask.sum()) == mask[0].numel() + 7
    assert mask[0].all()


def test_of_equal_weights_the_first_go() -> None:
    shrinker = start()
    with torch.no_grad():
        shrinker.program.tensors()[NAMES[0]].fill_(-0.25)
    masks = WeightMasks(shrinker)
    masks.prune(NAMES[:1], 5)
    (mask,) = masks.masks().values()
    assert mask.flatten()[:5].all()
    assert int(mask.sum()) == 5


@pytest.mark.parametrize("name", ["sgd", "adamw", "amsgrad"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_masks_hold(name: str, dtype: torch.dtype) -> None:
    shrinker = start(name, dtype)
    masks = WeightMasks(shrinker)
    masks.prune(NAMES, 150)
    before = {n: m.clone() for n, m in masks.masks().items()}
    moved: list[bool] = []

    def hold() -> None:
        moved.extend(not is_zero(weight(shrinker, n)[before[n]]) for n in NAMES)
        masks.hold()
        assert all(is_zero(weight(shrinker, n)[before[n]]) for n in NAMES)

    steps(shrinker, STEPS, hold)
    assert any(moved)
    assert sum(int((weight(shrinker, n) == 0).sum()) for n in NAMES) == 150


def test_training_is_that_of_a_masked_loop() -> None:
    """Beside a loop that multiplies by the mask."""
    shrinker, plain = start(), start()
    masks = WeightMasks(shrinker)
    masks.prune(NAMES, 150)
    found = steps(shrinker, STEPS, masks.hold)

    def multiply() -> None:
        with torch.no_grad():
            for name, mask in masks.masks().items():
                plain.program.tensors()[name].mul_(~mask)

    multiply()
    assert steps(plain, STEPS, multiply) == found


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_masks_follow_a_shrinking(name: str) -> None:
    shrinker, other = start(name), start(name)
    masks, whole = WeightMasks(shrinker), WeightMasks(other)
    for one in (masks, whole):
        one.prune(NAMES, 150)
        one.prune(["head.weight"], 2)
    for turn in range(2):
        plan = fp.plan(shrinker.program, {NAMES[0]: (0, [turn, 4 - turn])})
        silent = fp.plan(other.program, {NAMES[0]: (0, [turn, 4 - turn])})
        expected = {n: slice_axes(m, silent.kept.get(n, {})) for n, m in whole.masks().items()}
        shrinker.apply(plan)
        other.apply(silent)
        assert {n: m.tolist() for n, m in masks.masks().items()} == {
            n: m.tolist() for n, m in expected.items()
        }
        assert weight(shrinker, NAMES[0]).shape[0] == 6 - 2 * (turn + 1)
        steps(shrinker, 3, masks.hold)
        assert all(is_zero(weight(shrinker, n)[m]) for n, m in masks.masks().items())
        whole.follow()
        steps(other, 3, whole.hold)


def test_masks_of_deleted_layers_go() -> None:
    shrinker = start()
    shrinker.run("insert-gates")
    masks = WeightMasks(shrinker)
    masks.prune(NAMES, 10)
    shrinker.run("set-gates{where=blocks.0.*} | delete-gated", verify=False)
    with pytest.raises(TrainingError, match="was replaced during a step"):
        masks.hold()
    masks.follow()
    masks.hold()
    assert masks.masks() == {}


def test_state() -> None:
    shrinker = start()
    masks = WeightMasks(shrinker)
    masks.prune(NAMES, 50)
    twin = WeightMasks(shrinker)
    twin.load_state_dict(masks.state_dict())
    assert all(torch.equal(m, twin.masks()[n]) for n, m in masks.masks().items())
    with pytest.raises(TrainingError, match="has no tensor of shape"):
        twin.load_state_dict({"nowhere": torch.zeros(2, dtype=torch.bool)})
    with pytest.raises(TrainingError, match="has no tensor of shape"):
        twin.load_state_dict({NAMES[0]: torch.zeros(2, dtype=torch.bool)})
    assert len(twin.masks()) == 2


def test_nothing_to_prune() -> None:
    shrinker = start()
    masks = WeightMasks(shrinker)
    masks.hold()
    masks.prune(NAMES, 0)
    assert not any(m.any() for m in masks.masks().values())
    count = sum(weight(shrinker, n).numel() for n in NAMES)
    masks.prune(NAMES, 10 * count)
    assert all(isinstance(m, torch.Tensor) and m.all() for m in masks.masks().values())
    assert isinstance(shrinker.module, nn.Module)
