"""Tests of fxprune.verify.noise."""

from __future__ import annotations

import torch

from fxprune.verify.noise import noise_of, noisy

ONES = torch.ones(3)
TENSORS = {
    "a": ONES,
    "tied": ONES,
    "other": torch.ones(3),
    "varied": torch.arange(3.0),
    "one": torch.ones(1),
    "whole": torch.ones(3, dtype=torch.int64),
}


def test_only_tensors_of_one_repeated_value_are_given_noise() -> None:
    found = noise_of(TENSORS, 0)
    assert found.keys() == {"a", "tied", "other"}
    assert all(bool(((x >= 0.1) & (x < 1.1)).all()) for x in found.values())


def test_a_tied_tensor_stays_tied_and_the_rest_as_they_are() -> None:
    found = noisy(TENSORS, 0)
    assert found["a"] is found["tied"]
    assert not torch.equal(found["a"], found["other"])
    assert torch.equal(ONES, torch.ones(3))


def test_noise_depends_on_name_and_seed_alone() -> None:
    alone = {"other": TENSORS["other"]}
    assert torch.equal(noise_of(alone, 1)["other"], noise_of(TENSORS, 1)["other"])
    assert not torch.equal(noise_of(alone, 1)["other"], noise_of(alone, 2)["other"])
