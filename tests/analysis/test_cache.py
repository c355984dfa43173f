"""What is remembered of a program: worked out once, handed on by name, gone with the program."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

import fxprune as fp
from fxprune.analysis.cache import hand_on, remember, solved
from fxprune.graph.program import Program


def captured() -> Program:
    return fp.capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(2, 4))


def test_labels_are_solved_once_for_a_program() -> None:
    one, other = captured(), captured()
    assert solved(one) is solved(one)
    assert solved(one) is not solved(other)


def test_only_what_is_named_is_handed_on() -> None:
    before, after = captured(), captured()
    for key in ("kept", "dropped"):
        remember(before, key, lambda: "before")
    hand_on(before, after, ["kept"])
    found = [remember(after, key, lambda: "anew") for key in ("kept", "dropped")]
    assert found == ["before", "anew"]


def test_what_is_remembered_goes_with_the_program() -> None:
    program = captured()
    seen = weakref.ref(remember(program, "value", nn.Identity))
    del program
    gc.collect()
    assert seen() is None
